"""A training that goes on in a refactored network goes on as if nothing had happened, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from migrate_ckpt.changes import Change, apply_changes
from migrate_ckpt.files import read_checkpoint, write_checkpoint
from migrate_ckpt.formats import open_container
from migrate_ckpt.formats.source import FileSource
from migrate_ckpt.history import History, ckpt_migration_key, records_key
from migrate_ckpt.migration import Migration
from migrate_ckpt.operations import (
    Operation,
    concat,
    follow,
    merge_qkv,
    permute_rows,
    reindex,
    rename,
    reshape,
    split,
    split_qkv,
    stack,
    tie,
    transpose,
    unstack,
)
from migrate_ckpt.optimizers.declaration import Follow
from migrate_ckpt.optimizers.rules import OptimizerRules
from migrate_ckpt.optimizers.undo import apply_undoably
from migrate_ckpt.outline import OutlineEntry, outline
from migrate_ckpt.plan import make_plan
from migrate_ckpt.preview import OfContainer, preview_plan
from migrate_ckpt.runner import run_plan

from .networks import (
    FromOne,
    Grouped,
    HeadFirst,
    Network,
    Old,
    Renamed,
    Reusing,
    Split,
    Stacked,
    Swapped,
    Transposed,
    checkpoint,
    contents,
    facts,
    frozen,
    tied,
    train,
)

BEFORE, AFTER = 4, 9

Parameters = Iterable[Any]
MakeOptimizer = Callable[[Parameters], torch.optim.Optimizer]
OPTIMIZERS: dict[str, MakeOptimizer] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "SGD with momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.9)),
    "AdamW with amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
}

SPLIT = [split("qkv.{n}", ["q.{n}", "k.{n}", "v.{n}"])]
CONCAT = [concat(["q.{n}", "k.{n}", "v.{n}"], "qkv.{n}")]
RENAME = [
    rename({"first.{n}": "net.stem.{n}", "qkv.{n}": "net.qkv.{n}", "head.{n}": "net.head.{n}"}),
    rename("layers.{i}.{n}", "net.blocks.{i}.{n}"),
]
TO_HEAD_FIRST = [rename("head.{n}", "out.{n}")]
HEAD_FIRST = follow(order_after=["out", "layers", "first", "qkv"])
SWAP = [reindex("layers.{i}", {0: 1, 1: 0})]
SWAP_BY_NAME = [
    rename({"layers.0.{n}": "layers.1.{n}", "layers.1.{n}": "layers.0.{n}"}),
]
LAYERS_IN_ORDER = follow(order_after=["first", "qkv", "layers.{i}", "head"])
PARTS = ["q.{n}", "k.{n}", "v.{n}"]
TO_GROUPED = [
    split_qkv("qkv.{n}", PARTS, heads=2),
    merge_qkv(PARTS, "qkv.{n}", heads=2, layout="grouped"),
]
FROM_GROUPED = [
    split_qkv("qkv.{n}", PARTS, heads=2, layout="grouped"),
    merge_qkv(PARTS, "qkv.{n}", heads=2),
]
# The same by hand: 24 rows, those of a head 4 long.
ROWS = [part * 8 + head * 4 + row for head in (0, 1) for part in (0, 1, 2) for row in range(4)]
SHIFT = [rename("layers.{i}.{n}", "blocks.{i}.{n}"), reindex("blocks.{i}", shift=1)]

Case = tuple[Callable[[], Network], Callable[[], Network], Sequence[Operation], Follow]
CASES: dict[str, Case] = {
    "other names": (Old, Renamed, RENAME, follow()),
    "another order": (Old, HeadFirst, TO_HEAD_FIRST, HEAD_FIRST),
    "two layers of one shape swapped": (Old, Swapped, SWAP, LAYERS_IN_ORDER),
    "the same by names": (Old, Swapped, SWAP_BY_NAME, LAYERS_IN_ORDER),
    "layers counted from one": (Old, FromOne, SHIFT, follow()),
    "a projection split": (Old, Split, SPLIT, follow()),
    "projections joined": (Split, Old, CONCAT, follow()),
    "rows in the order of heads": (Old, Grouped, TO_GROUPED, follow()),
    "rows in the order of parts": (Grouped, Old, FROM_GROUPED, follow()),
    "rows in an order by hand": (Old, Grouped, [permute_rows("qkv.{n}", ROWS)], follow()),
    "layers stacked": (Old, Stacked, [stack("layers.{i}.{n}", "layers.{n}", over="i")], follow()),
    "layers unstacked": (
        Stacked,
        Old,
        [unstack(f"layers.{n}", f"layers.{{i}}.{n}", over="i") for n in ("weight", "bias")],
        follow(order_after=["first", "qkv", "layers.0", "layers.1", "head"]),
    ),
    "a matrix transposed": (Old, Transposed, [transpose("qkv.weight")], follow()),
    "a matrix flattened and back": (
        Old,
        Old,
        [reshape("qkv.weight", [-1]), reshape("qkv.weight", [24, 8])],
        follow(),
    ),
    "tied weights": (tied(Old), tied(Renamed), RENAME, follow()),
    "tied weights, the other one first": (tied(Old), tied(HeadFirst), TO_HEAD_FIRST, HEAD_FIRST),
    "tied weights beside a split": (tied(Old), tied(Split), SPLIT, follow()),
    "a weight that is tied now": (
        Reusing,
        tied(Old),
        [tie("head.weight", "first.weight")],
        follow(),
    ),
    "a frozen layer": (frozen(Old), frozen(Split), SPLIT, follow()),
    "a frozen layer in another order": (frozen(Old), frozen(HeadFirst), TO_HEAD_FIRST, HEAD_FIRST),
}


def migrate(ckpt: Any, operations: Sequence[Operation], *rules: Follow) -> Any:
    """Migrate what a training saved, by way of files, as everybody does."""
    ckpt, _, _ = apply_undoably(operations, ckpt, OptimizerRules(rules))
    return ckpt


def resume(
    ckpt: Any, network: Callable[[], nn.Module], optimizer_of: Callable[[nn.Module], Any]
) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(1)
    model = network()
    model.load_state_dict(ckpt["state_dict"])
    optimizer = optimizer_of(model)
    optimizer.load_state_dict(ckpt["optimizer_states"][0])
    return model, optimizer


def assert_goes_on(
    old: Callable[[], nn.Module],
    new: Callable[[], nn.Module],
    operations: Sequence[Operation],
    rules: Sequence[Follow],
    optimizer_of: Callable[[nn.Module], torch.optim.Optimizer],
    tmp_path: Path,
    *,
    new_optimizer_of: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
) -> None:
    torch.manual_seed(0)
    model = old()
    optimizer = optimizer_of(model)
    train(model, optimizer, 0, BEFORE)
    saved = checkpoint(model, optimizer)
    expected_losses = train(model, optimizer, BEFORE, AFTER)
    write_checkpoint(saved, tmp_path / "old.ckpt")

    migrated = migrate(read_checkpoint(tmp_path / "old.ckpt"), operations, *rules)
    write_checkpoint(migrated, tmp_path / "new.ckpt")
    loaded = torch.load(tmp_path / "new.ckpt", weights_only=True)
    refactored, resumed = resume(loaded, new, new_optimizer_of or optimizer_of)
    losses = train(refactored, resumed, BEFORE, AFTER)

    assert losses == expected_losses
    expected = migrate(checkpoint(model, optimizer), operations, *rules)
    assert contents(checkpoint(refactored, resumed)) == contents(expected)


def over_all(make: MakeOptimizer) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda model: make(model.parameters())


def over_names(make: MakeOptimizer) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda model: make(model.named_parameters())


@pytest.mark.parametrize("over", [over_all, over_names], ids=["parameters", "named parameters"])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_training_goes_on_bit_for_bit(
    case: Case, make: MakeOptimizer, over: Any, tmp_path: Path
) -> None:
    old, new, operations, rules = case

    assert_goes_on(old, new, operations, [rules], over(make), tmp_path)


def decay_groups(model: nn.Module, *, named: bool) -> list[dict[str, Any]]:
    """Matrices decay and vectors do not, as nearly everybody has it."""
    parameters = list(model.named_parameters())
    groups = [
        [(n, p) for n, p in parameters if (p.dim() > 1) is is_matrix] for is_matrix in (True, False)
    ]
    return [
        {"params": group if named else [p for _, p in group], "weight_decay": decay}
        for group, decay in zip(groups, (0.1, 0.0), strict=True)
    ]


# Stacked, a vector is a matrix, which this author has decay.
IN_THEIR_GROUPS = {name: case for name, case in CASES.items() if "stacked" not in name}


@pytest.mark.parametrize("case", IN_THEIR_GROUPS.values(), ids=IN_THEIR_GROUPS.keys())
def test_training_with_two_groups_goes_on_by_their_names(case: Case, tmp_path: Path) -> None:
    old, new, operations, rules = case

    def adam(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(decay_groups(model, named=True), lr=0.01, amsgrad=True)

    assert_goes_on(old, new, operations, [rules], adam, tmp_path)


def test_training_with_two_groups_goes_on_by_the_orders_that_the_author_declares(
    tmp_path: Path,
) -> None:
    def adam(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(decay_groups(model, named=False), lr=0.01)

    modules = ["first", "qkv", "layers.{i}", "head"]
    before = [[f"{module}.{name}" for module in modules] for name in ("weight", "bias")]

    assert_goes_on(Old, Split, SPLIT, [follow(order_before=before)], adam, tmp_path)


def test_training_with_two_optimizers_goes_on(tmp_path: Path) -> None:
    """Each of them has half of the network, so that only the author can say which."""
    operations = [*SPLIT, rename("head.{n}", "out.{n}")]
    rules = [
        follow("optimizer_states.0", order_before=["first", "qkv"]),
        follow("optimizer_states.1", order_before=["layers", "head"]),
    ]
    torch.manual_seed(0)
    model = Old()
    optimizers = [
        torch.optim.Adam([*model.first.parameters(), *model.qkv.parameters()]),
        torch.optim.Adam([*model.layers.parameters(), *model.head.parameters()]),
    ]
    for optimizer in optimizers:
        train(model, optimizer, 0, 2)
    saved = {
        "state_dict": model.state_dict(),
        "optimizer_states": [optimizer.state_dict() for optimizer in optimizers],
    }
    exp_avg = [optimizer.state_dict()["state"][2]["exp_avg"] for optimizer in optimizers]

    migrated = migrate(saved, operations, *rules)

    first, second = (each["state"] for each in migrated["optimizer_states"])
    assert list(first) == list(range(8))
    assert torch.equal(torch.cat([first[i]["exp_avg"] for i in (2, 4, 6)]), exp_avg[0])
    assert torch.equal(second[2]["exp_avg"], exp_avg[1])


def test_training_that_does_not_take_its_optimizer_along_goes_another_way(tmp_path: Path) -> None:
    """What the tests above say is not so by itself: the swap alone leaves the states with the wrong layers."""
    rules = [follow(states="keep")]

    with pytest.raises(AssertionError):
        assert_goes_on(Old, Swapped, SWAP, rules, over_all(OPTIMIZERS["Adam"]), tmp_path)


def outlined(entries: Iterable[OutlineEntry]) -> dict[tuple[str, ...], Any]:
    history = {(ckpt_migration_key,), (records_key,)}
    return {
        entry.path: (entry.kind, entry.dtype, entry.shape, entry.text)
        for entry in entries
        if entry.path[:1] not in history
    }


OVER = pytest.mark.parametrize("over", [over_all, over_names], ids=["parameters", "named"])


def saved_by(network: Callable[[], nn.Module], over: Any, path: Path) -> Path:
    torch.manual_seed(0)
    model = network()
    optimizer = over(OPTIMIZERS["AdamW with amsgrad"])(model)
    train(model, optimizer, 0, 2)
    write_checkpoint(checkpoint(model, optimizer), path)
    return path


@OVER
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_way_back_takes_the_optimizer_along(case: Case, over: Any, tmp_path: Path) -> None:
    old, _, operations, rules = case
    file = saved_by(old, over, tmp_path / "old.ckpt")
    ckpt = read_checkpoint(file)

    ckpt, inverses, rules_back = apply_undoably(operations, ckpt, OptimizerRules((rules,)))
    migrated = facts(ckpt)
    ckpt, again, rules_again = apply_undoably(inverses, ckpt, rules_back)
    back = facts(ckpt)
    ckpt, _, _ = apply_undoably(again, ckpt, rules_again)

    assert back == facts(read_checkpoint(file))
    assert facts(ckpt) == migrated


@OVER
@pytest.mark.parametrize(
    "name", ["other names", "another order", "two layers of one shape swapped", "tied weights"]
)
def test_way_there_and_back_is_the_same_bytes(name: str, over: Any, tmp_path: Path) -> None:
    old, _, operations, rules = CASES[name]
    file = saved_by(old, over, tmp_path / "old.ckpt")

    ckpt, inverses, rules_back = apply_undoably(
        operations, read_checkpoint(file), OptimizerRules((rules,))
    )
    ckpt, _, _ = apply_undoably(inverses, ckpt, rules_back)

    write_checkpoint(ckpt, tmp_path / "back.ckpt")
    assert (tmp_path / "back.ckpt").read_bytes() == file.read_bytes()


@OVER
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_plan_without_bytes_foretells_the_optimizer(case: Case, over: Any, tmp_path: Path) -> None:
    old, _, operations, rules = case
    file = saved_by(old, over, tmp_path / "old.ckpt")
    listed = tuple(operations)
    migration = Migration(
        "0001_x",
        lambda ckpt: ckpt,
        operations=listed,
        optimizer=OptimizerRules((rules,)),
    )
    plan = make_plan([migration], History())

    with FileSource(file) as source:
        container = open_container(source)
        preview = (
            preview_plan(OfContainer(container), plan, [migration], max_changes=None)
            .steps[0]
            .preview
        )
        # Nothing was looked at but the pickle.
        assert "mapped" not in vars(container)
    ckpt, _ = run_plan(read_checkpoint(file), plan, [migration])

    assert preview is not None
    assert preview.changes is not None
    # Entries are compared by all they say, and by a content that is only known while a plan is made.
    before = [replace(entry, content=None) for entry in outline(read_checkpoint(file))]
    changes = [
        Change(
            change.kind,
            change.before and replace(change.before, content=None),
            change.after and replace(change.after, content=None),
        )
        for change in preview.changes
    ]
    assert outlined(apply_changes(before, changes)) == outlined(outline(ckpt))

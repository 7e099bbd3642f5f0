"""A refactored network that was trained on goes back to the old one, and its optimizer with it, bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from migrate_ckpt import Migration, UndoRefused
from migrate_ckpt.history import History, Record, write_history
from migrate_ckpt.operations import Operation, follow
from migrate_ckpt.optimizers.declaration import Follow
from migrate_ckpt.optimizers.rules import OptimizerRules
from migrate_ckpt.plan import make_plan
from migrate_ckpt.reverse_run import ReverseRun

from .networks import Old, Split, checkpoint, contents, train
from .test_training import CASES, CONCAT, OPTIMIZERS, OVER, Case, migrate, over_all, resume


def ordered(network: Callable[[], nn.Module]) -> tuple[tuple[str, ...]]:
    """The order in which a model has its parameters."""
    return (tuple(name for name, _ in network().named_parameters()),)


def declared(name: str, operations: Sequence[Operation], rules: Follow) -> Migration:
    return Migration(
        name, lambda ckpt: ckpt, operations=tuple(operations), optimizer=OptimizerRules((rules,))
    )


def stamped(ckpt: Any, migration: Migration) -> Any:
    return write_history(ckpt, History((Record(migration.name),)), in_metadata=False)


def reverse_run_of(migration: Migration) -> ReverseRun:
    plan = make_plan([migration], History((Record(migration.name),)))
    return ReverseRun(plan, [migration.name], [migration], Path("model.ckpt"))


JOINED = [replace(each, sizes=(8, 8, 8)) for each in CONCAT]  # type: ignore[type-var]
# What tells its way back by itself, and, where many became one, with the order of before.
BACK: dict[str, Case] = {
    **{
        name: CASES[name]
        for name in (
            "other names",
            "layers counted from one",
            "a projection split",
            "rows in an order by hand",
            "a matrix transposed",
            "tied weights",
            "tied weights beside a split",
            "a frozen layer",
        )
    },
    "projections joined": (Split, Old, JOINED, replace(follow(), order_before=ordered(Split))),
    **{
        name: (*CASES[name][:3], replace(CASES[name][3], order_before=ordered(Old)))
        for name in ("another order", "layers stacked", "rows in the order of heads")
    },
}


@OVER
@pytest.mark.parametrize("case", BACK.values(), ids=BACK.keys())
def test_training_of_the_refactored_model_goes_on_in_the_old_one(case: Case, over: Any) -> None:
    old, new, operations, rules = case
    optimizer_of = over(OPTIMIZERS["AdamW with amsgrad"])
    torch.manual_seed(0)
    model = old()
    optimizer = optimizer_of(model)
    train(model, optimizer, 0, 2)
    migrated = migrate(checkpoint(model, optimizer), operations, rules)
    refactored, resumed = resume(migrated, new, optimizer_of)
    train(refactored, resumed, 2, 4)
    saved = copy.deepcopy(checkpoint(refactored, resumed))
    expected = train(refactored, resumed, 4, 6)

    migration = declared("0001_x", operations, rules)
    run = reverse_run_of(migration)
    reverted = run.revert(stamped(saved, migration))
    again, its_optimizer = resume(reverted, old, optimizer_of)
    losses = train(again, its_optimizer, 4, 6)

    assert losses == expected
    expected_at_end = contents(checkpoint(refactored, resumed))
    assert contents(migrate(checkpoint(again, its_optimizer), operations, rules)) == expected_at_end


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("projections joined", "sizes"),
        ("another order", "order_before"),
        ("layers stacked", "order_before"),
        ("a matrix flattened and back", "shape of before"),
        ("a weight that is tied now", "what was there before"),
    ],
)
def test_way_back_that_nothing_tells_is_refused(name: str, reason: str) -> None:
    old, _, operations, rules = CASES[name]
    model = old()
    optimizer = over_all(OPTIMIZERS["Adam"])(model)
    train(model, optimizer, 0, 2)
    migrated = migrate(checkpoint(model, optimizer), operations, rules)
    migration = declared("0001_x", operations, rules)

    with pytest.raises(UndoRefused, match=reason):
        reverse_run_of(migration).revert(stamped(migrated, migration))

"""Real checkpoints through chains of five operations and their inverses: what comes out is what went in."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from migrate_ckpt import (
    draft_migration,
    migrate_file,
    new_migration,
    read_checkpoint,
    write_checkpoint,
)
from migrate_ckpt.comparison import find_unlike
from migrate_ckpt.operations import (
    Operation,
    add,
    add_prefix,
    cast,
    concat,
    rename,
    set_value,
    split,
)
from tests.acceptance.real_files import NO_MAPPINGS, STATE_DICTS, Real, fetched
from tests.acceptance.test_real_checkpoints import leaves

pytestmark = pytest.mark.acceptance

ZIPS = {
    "a bare tensor": NO_MAPPINGS["a bare tensor"],
    **{name: real for name, real in STATE_DICTS.items() if real.format == "torch"},
}


@pytest.fixture(params=ZIPS.values(), ids=ZIPS.keys())
def real(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, tuple[str, ...]]:
    """The file and the path of its state dict; what is no mapping is made one."""
    wanted: Real = request.param
    path, section = fetched(wanted), wanted.keys
    if wanted is ZIPS["a bare tensor"]:
        (tmp_path / "migrations").mkdir()
        text = 'from migrate_ckpt.operations import wrap\n\noperations = [wrap("gammas")]\n'
        (tmp_path / "migrations" / "0001_wrap.py").write_text(text)
        migrate_file(path, tmp_path / "old.ckpt", folder=tmp_path / "migrations")
        path, section = tmp_path / "old.ckpt", ()
    return path, section


def weights_in(ckpt: Any, section: tuple[str, ...]) -> Mapping[str, Any]:
    for name in section:
        ckpt = ckpt[name]
    return dict(ckpt)


def there_and_back(ckpt: Any, operations: Sequence[Operation], changed: Path) -> Any:
    """Apply operations, write what they give, and undo them."""
    undo: list[Operation] = []
    for operation in operations:
        undo[:0] = operation.inverse(ckpt)
        ckpt = operation(ckpt)
    write_checkpoint(ckpt, changed)
    for operation in undo:
        ckpt = operation(ckpt)
    return ckpt


def test_five_operations_on_names_and_values_and_their_inverse_give_the_bytes_of_no_change(
    real: tuple[Path, tuple[str, ...]], tmp_path: Path
) -> None:
    path, section = real
    write_checkpoint(read_checkpoint(path), tmp_path / "same.ckpt")
    ckpt = read_checkpoint(path)
    first, *_ = weights_in(ckpt, section)
    operations = [
        rename(first, "first.weight", section=section),
        rename(re.compile(r"(.*)\.(\w+)"), r"\2.\1", section=section),
        add_prefix("module._orig_mod", section=section),
        add("steps", 3, section=section),
        set_value("hyper_parameters", {"lr": 0.1}),
    ]

    back = there_and_back(ckpt, operations, tmp_path / "changed.ckpt")
    write_checkpoint(back, tmp_path / "back.ckpt")

    assert (tmp_path / "changed.ckpt").read_bytes() != (tmp_path / "same.ckpt").read_bytes()
    assert (tmp_path / "back.ckpt").read_bytes() == (tmp_path / "same.ckpt").read_bytes()


def test_five_operations_on_tensors_and_their_inverse_give_every_bit_back(
    real: tuple[Path, tuple[str, ...]], tmp_path: Path
) -> None:
    path, section = real
    ckpt = read_checkpoint(path)
    tensors = {k: v for k, v in weights_in(ckpt, section).items() if isinstance(v, torch.Tensor)}
    key, tensor = max(tensors.items(), key=lambda item: item[1].dim())
    sizes = [1, tensor.shape[-1] - 1]
    operations = [
        split(key, ["part.0", "part.1"], sizes=sizes, dim=-1, section=section),
        cast("float64", section=section),
        rename("part.{i}", "half.{i}.weight", section=section),
        concat(["half.1.weight", "half.0.weight"], "joined", dim=-1, section=section),
        add_prefix("model", section=section),
    ]

    back = there_and_back(ckpt, operations, tmp_path / "changed.ckpt")
    write_checkpoint(back, tmp_path / "back.ckpt")

    def facts(value: Any) -> list[Any]:
        return [(at, bits(leaf)) for at, leaf in leaves(value)]

    assert facts(read_checkpoint(tmp_path / "back.ckpt")) == facts(read_checkpoint(path))
    assert facts(read_checkpoint(tmp_path / "changed.ckpt")) != facts(read_checkpoint(path))


def bits(leaf: Any) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return repr(leaf)
    data = leaf.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(data).hexdigest(), leaf.dtype, tuple(leaf.shape), leaf.requires_grad


REFACTORED = """from migrate_ckpt.operations import cast, concat, drop, rename, transpose

LAYER = "encoder.layer.{i}."
operations = [
    concat(
        [LAYER + f"attention.self.{name}.{{k}}" for name in ("query", "key", "value")],
        "blocks.{i}.attn.qkv.{k}",
    ),
    rename(LAYER + "attention.output.dense.{k}", "blocks.{i}.attn.proj.{k}"),
    rename(LAYER + "attention.output.LayerNorm.{k}", "blocks.{i}.norm1.{k}"),
    rename(LAYER + "intermediate.dense.{k}", "blocks.{i}.mlp.fc1.{k}"),
    rename(LAYER + "output.dense.{k}", "blocks.{i}.mlp.fc2.{k}"),
    rename(LAYER + "output.LayerNorm.{k}", "blocks.{i}.norm2.{k}"),
    transpose("blocks.{i}.mlp.fc1.weight"),
    drop("pooler.dense.{k}"),
    cast("float16"),
]
"""


def test_refactoring_of_a_real_network_is_written_by_comparing(tmp_path: Path) -> None:
    old, new = fetched(STATE_DICTS["a BERT in safetensors"]), tmp_path / "new.safetensors"
    (tmp_path / "by_hand").mkdir()
    (tmp_path / "by_hand" / "0001.py").write_text(REFACTORED)
    migrate_file(old, new, folder=tmp_path / "by_hand")

    draft = draft_migration(old, new)

    assert draft.is_proved
    assert draft.is_complete
    assert draft.likely == ()
    assert len(draft.drafted) == 9
    new_migration(tmp_path / "written", "refactor", text=draft.source("Refactor", ("old", "new")))
    migrate_file(old, tmp_path / "again.safetensors", folder=tmp_path / "written")
    ckpts = [read_checkpoint(path) for path in (new, tmp_path / "again.safetensors")]
    assert find_unlike(*ckpts) == []

"""Reverting without a bundle: migrations are taken back by what they declare, or nothing is written."""

from __future__ import annotations

import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from migrate_ckpt import (
    UndoRefused,
    UnreadableCheckpoint,
    ckpt_migration_key,
    migrate_file,
    plan_file,
    read_checkpoint,
    read_set,
    revert_file,
    write_checkpoint,
)
from migrate_ckpt.history import records_key

DECLARED = {
    "0001_names.py": """
from migrate_ckpt.operations import rename, reindex, rename_value, rename_class
operations = [
    rename("layers.{i}.{n}", "blocks.{i}.{n}"),
    reindex("blocks.{i}", shift=1),
    rename_value("hp.lr", "learning_rate"),
    rename_class("old_package.Config", "new_package.Config"),
]
""",
    "0002_tensors.py": """
from migrate_ckpt.operations import add, concat, pad_rows, permute_rows, split, stack, transpose
operations = [
    split("qkv", ["q", "k", "v"]),
    transpose("k"),
    permute_rows("v", [1, 2, 3, 0]),
    pad_rows("q", 2, value=7),
    stack("blocks.{i}.w", "blocks.w", over="i"),
    concat(["a", "b"], "ab", sizes=[1, 3]),
    add("steps", 0, dtype="int64"),
]
""",
}
# Stacked, layers are counted from 0, so the second migration shifts them back first.
DECLARED["0002_tensors.py"] = DECLARED["0002_tensors.py"].replace(
    "operations = [",
    'from migrate_ckpt.operations import reindex\noperations = [\n    reindex("blocks.{i}", shift=-1),',
)
LOSSY = 'from migrate_ckpt.operations import drop\noperations = [drop("a")]\n'
FUNCTION = "def handle(ckpt):\n    ckpt['epoch'] += 1\n    return ckpt\n"
WITH_REVERT = FUNCTION + "def revert(ckpt):\n    ckpt['epoch'] -= 1\n    return ckpt\n"


def contents(ckpt: Any) -> dict[str, Any]:
    weights = {key: value.tolist() for key, value in ckpt["state_dict"].items()}
    return {**ckpt, "state_dict": weights, "config": type(ckpt["config"]).__qualname__}


def state_dict() -> OrderedDict[str, torch.Tensor]:
    return OrderedDict(
        [(f"layers.{i}.w", torch.arange(6.0).reshape(2, 3) + i) for i in range(3)]
        + [("qkv", torch.arange(48.0).reshape(12, 4))]
        + [("a", torch.ones(1, 2)), ("b", torch.zeros(3, 2))]
    )


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint with an object of a package that is not there any more when it is read."""
    path = tmp_path / "model.ckpt"
    package = types.ModuleType("old_package")
    package.Config = type("Config", (), {"__module__": "old_package"})  # type: ignore[attr-defined]
    ckpt = {"state_dict": state_dict(), "epoch": 3, "hp": {"lr": 0.1}, "config": package.Config()}
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "old_package", package)
        torch.save(ckpt, path)
    return path


def test_declared_migrations_take_themselves_back(
    old: Path, tmp_path: Path, write_folder: Any
) -> None:
    folder, new = write_folder(DECLARED), tmp_path / "new.ckpt"
    migrate_file(old, new, folder=folder)

    reverted = revert_file(new, tmp_path / "back.ckpt", folder=folder)

    assert reverted.names == ("0001_names", "0002_tensors")
    assert reverted.warnings == ()
    back, before = read_checkpoint(tmp_path / "back.ckpt"), read_checkpoint(old)
    assert contents(back) == contents(before)
    assert back["config"].__class__.__module__ == "old_package"
    assert list(back["state_dict"]) == list(before["state_dict"])


def test_up_and_down_and_up_again_is_the_same_bytes(
    old: Path, tmp_path: Path, write_folder: Any
) -> None:
    folder = write_folder(DECLARED)
    ups, downs = [], []
    for _ in range(2):
        migrate_file(old, old, folder=folder)
        ups.append(old.read_bytes())
        revert_file(old, old, folder=folder)
        downs.append(old.read_bytes())

    assert ups[0] == ups[1]
    assert downs[0] == downs[1]


@pytest.mark.parametrize("kind", ["legacy", "safetensors"])
def test_other_formats_stay_what_they_are(kind: str, tmp_path: Path, write_folder: Any) -> None:
    path, weights = tmp_path / "model", {"fc.weight": torch.ones(2, 3)}
    if kind == "legacy":
        torch.save(weights, path, _use_new_zipfile_serialization=False)
    else:
        pytest.importorskip("safetensors.torch").save_file(weights, path)
    folder = write_folder(
        {
            "0001_x.py": "from migrate_ckpt.operations import rename\noperations = [rename('fc.{n}', 'head.{n}')]\n"
        }
    )
    migrate_file(path, path, folder=folder)
    head = path.read_bytes()[:2]

    revert_file(path, path, folder=folder)

    back = read_checkpoint(path)
    assert list(back) == ["fc.weight"]
    assert path.read_bytes()[:2] == head or kind == "safetensors"
    assert plan_file(path, read_set(folder)).pending == ("0001_x",)


@pytest.mark.parametrize("to", ["0001_names", "0002_tensors"])
def test_it_stops_after_the_migration_that_is_named(
    to: str, old: Path, tmp_path: Path, write_folder: Any
) -> None:
    folder = write_folder({**DECLARED, "0003_epoch.py": WITH_REVERT})
    migrate_file(old, tmp_path / "stopped.ckpt", folder=folder, to=to)
    migrate_file(old, old, folder=folder)

    revert_file(old, old, folder=folder, to=to)

    back, stopped = read_checkpoint(old), read_checkpoint(tmp_path / "stopped.ckpt")
    assert contents(back) == contents(stopped)
    assert back[ckpt_migration_key] == stopped[ckpt_migration_key]
    assert back[records_key] == stopped[records_key]


def test_nothing_of_the_history_is_left_where_all_is_taken_back(
    old: Path, write_folder: Any
) -> None:
    folder = write_folder(DECLARED)
    migrate_file(old, old, folder=folder)

    revert_file(old, old, folder=folder)

    assert not {ckpt_migration_key, records_key} & set(read_checkpoint(old))


def test_history_in_the_metadata_goes_as_well(tmp_path: Path, write_folder: Any) -> None:
    path = tmp_path / "flat.pt"
    model = torch.nn.Linear(2, 3)
    torch.save(model.state_dict(), path)
    folder = write_folder(
        {
            "0001_x.py": "from migrate_ckpt.operations import add_prefix\noperations = [add_prefix('fc')]\n",
            "0002_y.py": "from migrate_ckpt.operations import wrap\noperations = [wrap('model')]\n",
        }
    )
    migrate_file(path, path, folder=folder)

    revert_file(path, path, folder=folder, to="0001_x")
    half = read_checkpoint(path)
    assert list(half) == ["fc.weight", "fc.bias"]
    assert half._metadata[ckpt_migration_key] == ["0001_x"]  # type: ignore[attr-defined]

    revert_file(path, path, folder=folder)
    whole = read_checkpoint(path)
    assert list(whole) == ["weight", "bias"]
    assert whole._metadata == model.state_dict()._metadata  # type: ignore[attr-defined]


def test_what_was_trained_since_is_kept(old: Path, write_folder: Any) -> None:
    folder = write_folder(
        {
            name: text.replace('    pad_rows("q", 2, value=7),\n', "").replace(
                '    add("steps", 0, dtype="int64"),\n', ""
            )
            for name, text in DECLARED.items()
        }
    )
    migrate_file(old, old, folder=folder)
    trained = read_checkpoint(old)
    for value in trained["state_dict"].values():
        value.mul_(2)
    trained["epoch"] = 9
    write_checkpoint(trained, old)
    double = {key: (2 * value).tolist() for key, value in state_dict().items()}

    revert_file(old, old, folder=folder)

    back = read_checkpoint(old)
    assert back["epoch"] == 9
    assert {key: value.tolist() for key, value in back["state_dict"].items()} == double


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda w: w["q"][-1].add_(1), "differ from this file at state_dict.q"),
        (lambda w: w["steps"].add_(1), "differ from this file at state_dict.steps"),
        (lambda w: w.pop("k"), "'k'"),
    ],
    ids=["rows that were added and trained", "a counter that went on", "a part that is gone"],
)
def test_what_would_be_lost_is_found_before_anything_is_written(
    change: Any, reason: str, old: Path, write_folder: Any
) -> None:
    folder = write_folder(DECLARED)
    migrate_file(old, old, folder=folder)
    trained = read_checkpoint(old)
    change(trained["state_dict"])
    write_checkpoint(trained, old)
    before = old.read_bytes()

    with pytest.raises(UndoRefused, match=reason):
        revert_file(old, old, folder=folder)

    assert old.read_bytes() == before
    assert [path.name for path in old.parent.iterdir() if path.is_file()] == [old.name]


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        (LOSSY, r"0003_x has drop\('a'\), and what it drops is given up"),
        (FUNCTION, r"0003_x is a function, and has no `revert\(ckpt\)`"),
        (
            FUNCTION + "def revert(ckpt):\n    ckpt['no']\n",
            "the `revert` of 0003_x failed: KeyError",
        ),
        (FUNCTION + "def revert(ckpt):\n    pass\n", "returned a NoneType"),
    ],
    ids=["lossy", "a function", "a revert that fails", "a revert that returns nothing"],
)
def test_step_that_cannot_be_taken_back_is_refused(
    form: str, reason: str, old: Path, tmp_path: Path, write_folder: Any
) -> None:
    folder = write_folder({"0003_x.py": form})
    migrate_file(old, tmp_path / "new.ckpt", folder=folder)

    with pytest.raises(UndoRefused, match=reason):
        revert_file(tmp_path / "new.ckpt", tmp_path / "back.ckpt", folder=folder)

    assert not (tmp_path / "back.ckpt").exists()


def test_operation_of_ones_own_that_fails_on_the_way_back_is_named(
    old: Path, write_folder: Any
) -> None:
    form = """from dataclasses import dataclass
from migrate_ckpt.operations import Operation
@dataclass(frozen=True)
class Double(Operation):
    def __call__(self, ckpt):
        ckpt["epoch"] *= 2
        return ckpt
    def inverse(self, ckpt):
        return (Halve(),)
    def declared_inverse(self):
        return (Halve(),)
@dataclass(frozen=True)
class Halve(Double):
    def __call__(self, ckpt):
        raise RuntimeError("no half")
operations = [Double()]
"""
    folder = write_folder({"0001_x.py": form})
    migrate_file(old, old, folder=folder)
    before = old.read_bytes()

    with pytest.raises(
        UndoRefused, match=r"0001_x cannot be taken back by halve\(\): RuntimeError: no half\."
    ):
        revert_file(old, old, folder=folder)

    assert old.read_bytes() == before


def test_function_is_taken_back_by_its_revert_even_if_that_is_written_later(
    old: Path, write_folder: Any
) -> None:
    folder = write_folder({"0001_x.py": FUNCTION})
    migrate_file(old, old, folder=folder)
    (folder / "0001_x.py").write_text(WITH_REVERT)

    reverted = revert_file(old, old, folder=folder)

    assert reverted.names == ("0001_x",)
    assert read_checkpoint(old)["epoch"] == 3
    assert reverted.warnings == ()


def test_revert_beside_lossy_operations_is_the_author_s_word_and_its_loss_is_said(
    old: Path, write_folder: Any
) -> None:
    revert = "import torch\ndef revert(ckpt):\n    ckpt['state_dict']['a'] = torch.zeros(1, 2)\n    return ckpt\n"
    broken = revert.replace("return", "ckpt['epoch'] = 0\n    return")
    for text, warnings in ((revert, 0), (broken, 1)):
        folder = write_folder({"0001_x.py": LOSSY + text}, name=f"with_{warnings}")
        new = old.with_name("new.ckpt")
        migrate_file(old, new, folder=folder, force=True)

        reverted = revert_file(new, new, folder=folder)

        assert read_checkpoint(new)["state_dict"]["a"].tolist() == [[0, 0]]
        assert len(reverted.warnings) == warnings
        assert all("it would differ from this file at epoch" in w for w in reverted.warnings)


@pytest.mark.parametrize(
    ("change", "to", "reason"),
    [
        (lambda f: (f / "0002_tensors.py").write_text(LOSSY), None, "0002_tensors was edited"),
        (
            lambda f: (f / "0002_tensors.py").unlink(),
            None,
            "0002_tensors ran on .* not in the folder",
        ),
        (lambda f: None, "0009_x", "0009_x is none of the migrations of .*model.ckpt"),
    ],
    ids=["edited", "gone", "not applied"],
)
def test_folder_must_know_what_ran(
    change: Any, to: str | None, reason: str, old: Path, write_folder: Any
) -> None:
    folder = write_folder(DECLARED)
    migrate_file(old, old, folder=folder)
    before = old.read_bytes()
    change(folder)

    with pytest.raises(UndoRefused, match=reason):
        revert_file(old, old, folder=folder, to=to)

    assert old.read_bytes() == before


def test_migration_whose_file_was_renamed_leaves_the_history_too(
    old: Path, write_folder: Any
) -> None:
    folder = write_folder(DECLARED)
    migrate_file(old, old, folder=folder)
    (folder / "0002_tensors.py").rename(folder / "0002_other_name.py")

    reverted = revert_file(old, old, folder=folder, to="0001_names")

    assert reverted.names == ("0002_other_name",)
    assert read_checkpoint(old)[ckpt_migration_key] == ["0001_names"]


def test_migration_that_did_not_apply_is_passed_over(old: Path, write_folder: Any) -> None:
    form = """from migrate_ckpt.operations import rename, requires_key
requires = requires_key("c", otherwise="not_applicable")
operations = [rename("c", "d")]
"""
    folder = write_folder({**DECLARED, "0003_c.py": form})
    before = contents(read_checkpoint(old))
    assert migrate_file(old, old, folder=folder).not_applicable == ("0003_c",)

    revert_file(old, old, folder=folder)

    assert contents(read_checkpoint(old)) == before


def test_records_of_another_set_stay(old: Path, write_folder: Any) -> None:
    folder = write_folder(DECLARED)
    other = write_folder({"0001_x.py": WITH_REVERT}, name="other")
    other.rename(folder / "b")
    migrate_file(old, old, folder=folder)
    migrate_file(old, old, folder=folder, set_name="b")

    revert_file(old, old, folder=folder)

    assert read_checkpoint(old)[ckpt_migration_key] == ["0001_x"]
    revert_file(old, old, folder=folder, set_name="b")
    assert read_checkpoint(old)["epoch"] == 3


def test_where_nothing_is_to_be_taken_back_the_target_is_a_copy(
    old: Path, tmp_path: Path, write_folder: Any
) -> None:
    folder = write_folder(DECLARED)

    assert revert_file(old, tmp_path / "copy.ckpt", folder=folder).names == ()

    assert (tmp_path / "copy.ckpt").read_bytes() == old.read_bytes()


def test_bundle_takes_back_its_run_and_the_migrations_what_was_before(
    old: Path, write_folder: Any
) -> None:
    folder = write_folder({**DECLARED, "0003_x.py": LOSSY.replace('"a"', '"ab"')})
    migrate_file(old, old, folder=folder, to="0002_tensors")
    migrate_file(old, old, folder=folder, keep_undo=True)

    reverted = revert_file(old, old, folder=folder, to="0001_names")

    assert reverted.names == ("0002_tensors", "0003_x")
    assert "qkv" in read_checkpoint(old)["state_dict"]
    assert [path.name for path in old.parent.iterdir() if path.is_file()] == [old.name]


def test_file_that_was_trained_since_its_bundle_is_taken_back_by_its_migrations(
    old: Path, write_folder: Any
) -> None:
    folder = write_folder({"0001_names.py": DECLARED["0001_names.py"]})
    migrate_file(old, old, folder=folder, keep_undo=True)
    trained = read_checkpoint(old)
    trained["epoch"] = 9
    write_checkpoint(trained, old)

    revert_file(old, old, folder=folder)

    back = read_checkpoint(old)
    assert back["epoch"] == 9
    assert "layers.0.w" in back["state_dict"]


def test_damaged_file_is_refused(old: Path, write_folder: Any) -> None:
    folder = write_folder({"0001_names.py": DECLARED["0001_names.py"]})
    weights = {"layers.0.w": torch.arange(100_000.0)}
    config = read_checkpoint(old)["config"]
    write_checkpoint({"state_dict": weights, "hp": {"lr": 1}, "config": config}, old)
    migrate_file(old, old, folder=folder)
    data = bytearray(old.read_bytes())
    data[len(data) // 2] ^= 1
    old.write_bytes(data)

    with pytest.raises(UnreadableCheckpoint):
        revert_file(old, old, folder=folder)

    assert old.read_bytes() == data

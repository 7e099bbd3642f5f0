"""Undo: the file of before, byte for byte, from the migrated one and its bundle; or nothing is written."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from migrate_ckpt import (
    MigrationFailed,
    TargetExists,
    UndoRefused,
    UnreadableCheckpoint,
    inspect_file,
    migrate_file,
    revert_file,
    write_checkpoint,
)

RENAME = """from migrate_ckpt.operations import rename
operations = [rename("layers.{i}.weight", "blocks.{i}.weight")]
"""
LOSSY = """from migrate_ckpt.operations import cast, drop
operations = [drop("layers.0.weight"), cast("bfloat16", keys="layers.{i}.weight")]
"""
ANYTHING = """
def handle(ckpt):
    weights = ckpt.pop("state_dict")
    weights["layers.1.weight"].mul_(3)
    return {"all": [weights["layers.1.weight"], weights["layers.3.weight"].T]}
"""
NOTHING = """
def handle(ckpt):
    return ckpt
"""
FORMS = {"renamed": RENAME, "lossy": LOSSY, "anything": ANYTHING, "nothing": NOTHING}
LAYERS, LENGTH = 4, 300_000


def state_dict() -> OrderedDict[str, torch.Tensor]:
    return OrderedDict(
        (f"layers.{i}.weight", torch.arange(float(LENGTH)).reshape(100, -1) + i)
        for i in range(LAYERS)
    )


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": state_dict(), "epoch": 3}, path)
    return path


def bundle_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.undo")


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_migrated_file_and_bundle_are_the_old_file(
    form: str, kind: str, old: Path, tmp_path: Path, write_folder: Any
) -> None:
    if kind == "legacy":
        torch.save({"state_dict": state_dict()}, old, _use_new_zipfile_serialization=False)
    elif kind == "safetensors":
        if form is ANYTHING:
            pytest.skip("what this migration makes is no state dict")
        safetensors = pytest.importorskip("safetensors.torch")
        safetensors.save_file(state_dict(), old)
    before = old.read_bytes()
    new = tmp_path / "new.ckpt"
    report = migrate_file(old, new, folder=write_folder({"0001_x.py": form}), keep_undo=True)

    reverted = revert_file(new, tmp_path / "back.ckpt")

    assert report.ran == reverted.names == ("0001_x",)
    assert (tmp_path / "back.ckpt").read_bytes() == before
    assert old.read_bytes() == before


def test_bundle_that_is_taken_for_a_checkpoint_says_what_it_is(
    old: Path, write_folder: Any
) -> None:
    migrate_file(old, old, folder=write_folder({"0001_x.py": RENAME}), keep_undo=True)

    with pytest.raises(UnreadableCheckpoint, match="an undo bundle"):
        inspect_file(bundle_of(old))


def test_bundle_has_no_tensor_that_the_migrated_file_has(old: Path, write_folder: Any) -> None:
    size = old.stat().st_size

    migrate_file(old, old, folder=write_folder({"0001_x.py": RENAME}), keep_undo=True)

    assert bundle_of(old).stat().st_size < size / 100


def test_bundle_has_what_was_dropped_and_changed_and_no_more(old: Path, write_folder: Any) -> None:
    migrate_file(old, old, folder=write_folder({"0001_x.py": LOSSY}), keep_undo=True)

    whole = LAYERS * LENGTH * 4
    assert whole < bundle_of(old).stat().st_size < whole * 1.01


def test_in_place_the_bundle_goes_once_it_is_used(old: Path, write_folder: Any) -> None:
    before = old.read_bytes()
    folder = write_folder({"0001_x.py": RENAME})
    for _ in range(2):
        migrate_file(old, old, folder=folder, keep_undo=True)
        assert old.read_bytes() != before
        revert_file(old, old)
        assert old.read_bytes() == before
        assert not bundle_of(old).exists()


def test_up_and_down_and_up_again_is_the_same_bytes(old: Path, write_folder: Any) -> None:
    folder = write_folder({"0001_x.py": RENAME, "0002_y.py": LOSSY.replace("layers", "blocks")})
    migrate_file(old, old, folder=folder, keep_undo=True)
    up = old.read_bytes()

    assert revert_file(old, old).names == ("0001_x", "0002_y")
    migrate_file(old, old, folder=folder)

    assert old.read_bytes() == up


def test_where_nothing_ran_there_is_no_bundle(old: Path, tmp_path: Path, write_folder: Any) -> None:
    folder = write_folder({"0001_x.py": RENAME})
    migrate_file(old, old, folder=folder)

    migrate_file(old, tmp_path / "copy.ckpt", folder=folder, keep_undo=True)

    assert not bundle_of(tmp_path / "copy.ckpt").exists()
    with pytest.raises(UndoRefused, match="--keep-undo"):
        revert_file(tmp_path / "copy.ckpt", tmp_path / "back.ckpt")


def test_bundle_that_is_there_already_is_not_replaced(old: Path, write_folder: Any) -> None:
    folder = write_folder({"0001_x.py": RENAME})
    bundle_of(old).write_bytes(b"of an earlier run")
    before = old.read_bytes()

    with pytest.raises(TargetExists, match=r"model\.ckpt\.undo"):
        migrate_file(old, old, folder=folder, keep_undo=True)
    assert old.read_bytes() == before

    migrate_file(old, old, folder=folder, keep_undo=True, force=True)
    revert_file(old, old)
    assert old.read_bytes() == before


def test_run_that_was_ended_between_bundle_and_target_is_run_again(
    old: Path, write_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder({"0001_x.py": RENAME})
    before = old.read_bytes()
    replace = os.replace

    def end_at_target(source: Any, target: Any) -> None:
        if Path(target) == old:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", end_at_target)
        with pytest.raises(KeyboardInterrupt):
            migrate_file(old, old, folder=folder, keep_undo=True)
    assert old.read_bytes() == before
    assert bundle_of(old).exists()

    migrate_file(old, old, folder=folder, keep_undo=True)

    revert_file(old, old)
    assert old.read_bytes() == before


def test_file_that_was_changed_since_is_refused_and_stays(old: Path, write_folder: Any) -> None:
    migrate_file(old, old, folder=write_folder({"0001_x.py": RENAME}), keep_undo=True)
    changed = bytearray(old.read_bytes())
    changed[len(changed) // 2] ^= 1
    old.write_bytes(changed)

    with pytest.raises(UndoRefused, match="changed since"):
        revert_file(old, old)

    assert old.read_bytes() == changed
    assert bundle_of(old).exists()


def test_bundle_that_is_named_must_be_of_the_file_even_if_it_could_put_it_back(
    old: Path, write_folder: Any
) -> None:
    """What was changed since may be no part of the old file, and would be lost."""
    migrate_file(old, old, folder=write_folder({"0001_x.py": RENAME}), keep_undo=True)
    changed = old.read_bytes() + b"what was added since"
    old.write_bytes(changed)

    with pytest.raises(UndoRefused, match="changed since"):
        revert_file(old, old, undo=bundle_of(old))

    assert old.read_bytes() == changed


def damaged(data: bytes, how: str) -> bytes:
    line, _, rest = data.partition(b"\n")
    count = int(line.split()[-1])
    header, kept = json.loads(rest[:count]), rest[count:]
    if how == "a flipped bit":
        return data[:-1] + bytes([data[-1] ^ 1])
    if how == "cut":
        return data[:-10]
    if how == "another kind":
        return b"PK\3\4" + data
    if how == "a header of 10 GB":
        return b"migrate-ckpt undo 1 10000000000\n" + rest
    if how == "no number":
        return b"migrate-ckpt undo 1 many\n" + rest
    if how == "a piece before the beginning":
        header["pieces"][0][1] = -5
    elif how == "a piece behind the end":
        header["pieces"][-1][2] += 1
    elif how == "a piece of something else":
        header["pieces"][0][0] = "/etc/passwd"
    elif how == "a piece of endless length":
        header["pieces"][0][2] = float("inf")
    elif how == "nested without end":
        return b"migrate-ckpt undo 1 200000\n" + b"[" * 200_000
    elif how == "a piece less":
        header["pieces"].pop()
    elif how == "no pieces":
        del header["pieces"]
    new = json.dumps(header).encode()
    return b"migrate-ckpt undo 1 %d\n" % len(new) + new + kept


@pytest.mark.parametrize(
    "how",
    [
        "a flipped bit",
        "cut",
        "another kind",
        "a header of 10 GB",
        "no number",
        "a piece before the beginning",
        "a piece behind the end",
        "a piece of something else",
        "a piece of endless length",
        "nested without end",
        "a piece less",
        "no pieces",
    ],
)
def test_damaged_bundle_is_refused_and_nothing_is_written(
    how: str, old: Path, tmp_path: Path, write_folder: Any
) -> None:
    migrate_file(old, old, folder=write_folder({"0001_x.py": RENAME}), keep_undo=True)
    bundle = bundle_of(old)
    bundle.write_bytes(damaged(bundle.read_bytes(), how))

    with pytest.raises(UndoRefused):
        revert_file(old, tmp_path / "back.ckpt")

    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "model.ckpt",
        "model.ckpt.undo",
    ]


def test_failed_migration_leaves_no_bundle(old: Path, tmp_path: Path, write_folder: Any) -> None:
    folder = write_folder({"0001_x.py": "def handle(ckpt):\n    raise KeyError('x')\n"})

    with pytest.raises(MigrationFailed, match="0001_x"):
        migrate_file(old, tmp_path / "new.ckpt", folder=folder, keep_undo=True)

    assert not bundle_of(tmp_path / "new.ckpt").exists()


def test_one_storage_that_stands_in_the_migrated_file_twice_is_taken_once(
    old: Path, tmp_path: Path, write_folder: Any
) -> None:
    weight = torch.arange(float(LENGTH))
    write_checkpoint({"state_dict": {"a": weight, "b": weight[:10]}, "x": [weight]}, old)
    before = old.read_bytes()
    form = "def handle(ckpt):\n    ckpt['y'] = ckpt['x'] * 2\n    return ckpt\n"
    migrate_file(
        old, tmp_path / "new.ckpt", folder=write_folder({"0001_x.py": form}), keep_undo=True
    )

    revert_file(tmp_path / "new.ckpt", tmp_path / "back.ckpt")

    assert (tmp_path / "back.ckpt").read_bytes() == before


THREE = {
    "0001_a.py": RENAME,
    "0002_b.py": LOSSY.replace("layers", "blocks"),
    "0003_c.py": "def handle(ckpt):\n    ckpt['epoch'] += 1\n    return ckpt\n",
}


@pytest.mark.parametrize("to", ["0001_a", "0002_b", "0003_c"])
def test_reverted_to_a_migration_it_is_the_file_of_a_run_that_stopped_there(
    to: str, old: Path, tmp_path: Path, write_folder: Any
) -> None:
    folder = write_folder(THREE)
    migrate_file(old, tmp_path / "stopped.ckpt", folder=folder, to=to)
    migrate_file(old, tmp_path / "new.ckpt", folder=folder, keep_undo=True)

    back = revert_file(tmp_path / "new.ckpt", tmp_path / "back.ckpt", to=to, folder=folder)

    assert back.names == tuple(name for name in ("0001_a", "0002_b", "0003_c") if name > to)
    assert (tmp_path / "back.ckpt").read_bytes() == (tmp_path / "stopped.ckpt").read_bytes()
    assert not bundle_of(tmp_path / "back.ckpt").exists()


def test_in_place_it_can_be_taken_back_further(old: Path, write_folder: Any) -> None:
    folder = write_folder(THREE)
    before = old.read_bytes()
    migrate_file(old, old, folder=folder, keep_undo=True)

    assert revert_file(old, old, to="0002_b", folder=folder).names == ("0003_c",)
    assert revert_file(old, old, to="0001_a", folder=folder).names == ("0002_b",)
    assert revert_file(old, old).names == ("0001_a",)

    assert old.read_bytes() == before
    assert [path.name for path in old.parent.iterdir() if path.is_file()] == [old.name]


def test_run_of_what_was_missed_is_taken_back_by_the_same_migrations(
    old: Path, tmp_path: Path, write_folder: Any
) -> None:
    late = {name: THREE[name] for name in ("0001_a.py", "0003_c.py")}
    migrate_file(old, old, folder=write_folder(late, name="late"))
    folder = write_folder({**THREE, "0004_d.py": NOTHING})
    choices: Any = {"folder": folder, "policy": "run-missed"}
    migrate_file(old, tmp_path / "stopped.ckpt", to="0002_b", **choices)
    report = migrate_file(old, tmp_path / "new.ckpt", keep_undo=True, **choices)
    assert report.ran == ("0002_b", "0004_d")

    back = revert_file(tmp_path / "new.ckpt", tmp_path / "back.ckpt", to="0002_b", folder=folder)

    assert (tmp_path / "back.ckpt").read_bytes() == (tmp_path / "stopped.ckpt").read_bytes()
    assert back.names == ("0004_d",)


@pytest.mark.parametrize(
    ("change", "to", "reason"),
    [
        ({}, "0009_x", "0009_x is none of the migrations"),
        ({"0001_a.py": NOTHING}, "0002_b", "0001_a would have to run again"),
        ({"0000_new.py": NOTHING}, "0002_b", "other migrations up to 0002_b"),
    ],
    ids=["not of the run", "edited since", "one more now"],
)
def test_what_cannot_be_run_again_as_it_was_is_refused(
    change: dict[str, str], to: str, reason: str, old: Path, write_folder: Any
) -> None:
    folder = write_folder(THREE)
    migrate_file(old, old, folder=folder, keep_undo=True)
    new = old.read_bytes()
    for name, text in change.items():
        (folder / name).write_text(text)

    with pytest.raises(UndoRefused, match=reason):
        revert_file(old, old, to=to, folder=folder)

    assert old.read_bytes() == new
    assert bundle_of(old).exists()

from __future__ import annotations

import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from migrate_ckpt import migrate_from_folder
from migrate_ckpt.errors import UnknownSet
from migrate_ckpt.history import Record, ckpt_migration_key, read_history
from migrate_ckpt.stamping import stamp

from .conftest import WriteFolder

HANDLE = "def handle(ckpt):\n    return ckpt\n"


@pytest.fixture
def folder(write_folder: WriteFolder) -> Path:
    return write_folder({"1_x.py": HANDLE, "2_y.py": "handle = dict", "s/1_z.py": HANDLE})


def test_stamped_checkpoint_needs_no_migration(folder: Path) -> None:
    stamped = stamp({"epoch": 1}, folder)

    same, done = migrate_from_folder(stamped, folder)

    assert same is stamped
    assert done == []


def test_stamp_is_the_history_that_running_them_would_leave(folder: Path) -> None:
    migrated, _ = migrate_from_folder({"epoch": 1}, folder)

    assert stamp({"epoch": 1}, folder) == migrated


def test_checkpoint_passed_in_is_not_changed(folder: Path) -> None:
    ckpt: OrderedDict[str, Any] = OrderedDict(weight=torch.ones(1))
    vars(ckpt)["_metadata"] = OrderedDict({"": {"version": 1}})

    stamped = stamp(ckpt, folder)

    assert list(ckpt) == ["weight"]
    assert list(vars(ckpt)["_metadata"]) == [""]
    assert stamped["weight"] is ckpt["weight"]


def test_mapping_of_a_framework_is_stamped_by_update(folder: Path) -> None:
    checkpoint: dict[str, Any] = {"epoch": 1}

    checkpoint.update(stamp(checkpoint, folder))

    assert checkpoint[ckpt_migration_key] == ["1_x", "2_y"]


def test_flat_state_dict_is_stamped_in_its_metadata_and_still_loads(folder: Path) -> None:
    layer = torch.nn.Linear(1, 1)

    stamped = stamp(layer.state_dict(), folder)

    layer.load_state_dict(stamped, strict=True)
    assert read_history(stamped).place == "metadata"
    assert read_history(stamped).names == ("1_x", "2_y")


def test_history_stays_where_it_is(folder: Path) -> None:
    stamped = stamp({"w": torch.ones(1), ckpt_migration_key: ["1_x"]}, folder)

    assert stamped[ckpt_migration_key] == ["1_x", "2_y"]


def test_what_else_the_history_says_stays(folder: Path) -> None:
    stamped = stamp({ckpt_migration_key: ["theirs", "2_y"]}, folder)

    assert stamped[ckpt_migration_key] == ["theirs", "1_x", "2_y"]


def test_stamp_says_the_set_and_todays_digests(folder: Path) -> None:
    [record] = read_history(stamp({}, folder, set_name="s")).records

    assert record.name == "1_z"
    assert record.set == "s"
    assert record.digest is not None
    assert record != Record("1_z")


def test_set_that_does_not_exist_is_an_error(folder: Path) -> None:
    with pytest.raises(UnknownSet):
        stamp({}, folder, set_name="t")


def test_training_code_can_stamp_with_the_standard_library_alone(folder: Path) -> None:
    # -S -I: no site-packages, so that nothing but the standard library can be imported.
    root = Path(__file__).resolve().parents[2]
    code = f"""
import sys
sys.path.append({str(root)!r})
from migrate_ckpt import digest, errors, folder, history, loader, migration, migration_file
from migrate_ckpt import plan, report, runner, stamping
print(stamping.stamp({{"epoch": 1}}, {str(folder)!r})["_migrate-ckpt-migrations"])
assert "torch" not in sys.modules
foreign = {{name.partition(".")[0] for name in sys.modules}} - set(sys.stdlib_module_names)
assert foreign == {{"__main__", "migrate_ckpt"}}, foreign
"""

    done = subprocess.run([sys.executable, "-S", "-I", "-c", code], capture_output=True, text=True)

    assert done.stderr == ""
    assert done.stdout == "['1_x', '2_y']\n"

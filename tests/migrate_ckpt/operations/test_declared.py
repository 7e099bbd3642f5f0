from __future__ import annotations

from pathlib import Path

import pytest
import torch

from migrate_ckpt import (
    InvalidMigrationFile,
    MigrationFailed,
    get_folder_migrations,
    migrate_file,
    migrate_from_folder,
    read_checkpoint,
    read_folder,
)
from tests.migrate_ckpt.conftest import WriteFolder

DECLARED = '''
"""Rename the head."""

from migrate_ckpt.operations import rename, strip_prefix

operations = [strip_prefix("module"), rename("head.weight", "classifier.weight")]
'''

IN_HANDLE = '''
"""Rename the head."""

from migrate_ckpt import operations


def handle(ckpt):
    return operations.rename("module.head.weight", "classifier.weight")(ckpt)
'''


@pytest.fixture
def old(tmp_path: Path) -> Path:
    torch.save({"state_dict": {"module.head.weight": torch.ones(2)}}, tmp_path / "old.ckpt")
    return tmp_path / "old.ckpt"


@pytest.mark.parametrize("text", [DECLARED, IN_HANDLE], ids=["declared", "in handle"])
def test_operations_run_from_a_file(text: str, old: Path, write_folder: WriteFolder) -> None:
    folder = write_folder({"1_rename.py": text})

    report = migrate_file(old, old.with_name("new.ckpt"), folder=folder)

    assert report.ran == ("1_rename",)
    assert list(read_checkpoint(old.with_name("new.ckpt"))["state_dict"]) == ["classifier.weight"]


def test_a_file_is_known_to_be_declared_before_it_is_run(write_folder: WriteFolder) -> None:
    folder = write_folder({"1_declared.py": DECLARED, "2_handle.py": IN_HANDLE})

    assert [file.is_declared for file in read_folder(folder).files] == [True, False]
    first, second = get_folder_migrations(folder)
    assert [str(operation) for operation in first.operations or ()] == [
        "strip_prefix('module')",
        "rename('head.weight', 'classifier.weight')",
    ]
    assert second.operations is None


def test_a_declared_migration_runs_in_memory_too(write_folder: WriteFolder) -> None:
    ckpt = {"state_dict": {"module.head.weight": torch.ones(2)}}

    migrated, done = migrate_from_folder(ckpt, write_folder({"1_x.py": DECLARED}))

    assert list(migrated["state_dict"]) == ["classifier.weight"]
    assert list(ckpt["state_dict"]) == ["module.head.weight"]
    assert [migration.name for migration in done] == ["1_x"]


def test_failure_names_the_operation_and_carries_its_error(
    old: Path, write_folder: WriteFolder
) -> None:
    folder = write_folder({"1_x.py": DECLARED.replace("head.weight", "haed.weight")})

    with pytest.raises(
        MigrationFailed, match=r"operation 2 of 2, rename\(.*'head.weight'"
    ) as caught:
        migrate_file(old, old.with_name("new.ckpt"), folder=folder)

    cause = caught.value.to_dict()["cause"]
    assert (cause["error_type"], cause["keys"]) == ("keys_not_found", ["haed.weight"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (DECLARED + "\n\ndef handle(ckpt):\n    return ckpt\n", "both `handle` and `operations`"),
        ("x = 1\n", "no `handle` and no `operations`"),
        ("def make():\n    operations = []\n", "no `handle` and no `operations`"),
    ],
    ids=["both", "neither", "in a function only"],
)
def test_a_file_has_one_of_the_two_forms(
    text: str, message: str, write_folder: WriteFolder
) -> None:
    with pytest.raises(InvalidMigrationFile, match=message):
        read_folder(write_folder({"1_x.py": text}))


@pytest.mark.parametrize("value", ["[]", "None", "[len]", "'rename'"])
def test_a_list_of_something_else_is_refused(value: str, write_folder: WriteFolder) -> None:
    with pytest.raises(InvalidMigrationFile, match="must be a list of operations"):
        get_folder_migrations(write_folder({"1_x.py": f"operations = {value}\n"}))

"""What the original library does and its users rely on; its names are imported from the top."""

from __future__ import annotations

import warnings
from copy import deepcopy
from typing import Any

import pytest
import torch

import migrate_ckpt as library
from migrate_ckpt import (
    CkptType,
    HistoryWarning,
    InvalidHistory,
    Migration,
    MigrationCallback,
    ckpt_migration_key,
    get_folder_migrations,
    migrate_ckpt,
    migrate_from_folder,
)

from .conftest import WriteFolder


def migration(name: str, callback: MigrationCallback | None = None) -> Migration:
    return Migration(name, callback or (lambda ckpt: ckpt))


def history(*names: str) -> dict[str, Any]:
    return {ckpt_migration_key: list(names)}


def names(migrations: list[Migration]) -> list[str]:
    return [m.name for m in migrations]


def test_history_stands_under_the_original_key() -> None:
    assert ckpt_migration_key == "_migrate-ckpt-migrations"


@pytest.mark.parametrize(
    "name",
    [
        "CkptType",
        "Migration",
        "MigrationCallback",
        "ckpt_migration_key",
        "get_folder_migrations",
        "migrate_ckpt",
        "migrate_from_folder",
    ],
)
def test_original_name_is_public(name: str) -> None:
    assert name in library.__all__


def test_checkpoint_without_the_key_gets_it_as_a_list_of_names() -> None:
    ckpt, done = migrate_ckpt({}, [migration("blank")])

    assert ckpt == {ckpt_migration_key: ["blank"]}
    assert type(ckpt[ckpt_migration_key]) is list
    assert names(done) == ["blank"]


def test_one_missing_migration_runs_after_those_that_ran() -> None:
    ckpt, _ = migrate_ckpt({}, [migration("blank")])

    ckpt, done = migrate_ckpt(ckpt, [migration("blank"), migration("blank2")])

    assert ckpt[ckpt_migration_key] == ["blank", "blank2"]
    assert names(done) == ["blank2"]


def test_migration_is_executed_on_the_checkpoint() -> None:
    def add_field(ckpt: CkptType) -> CkptType:
        ckpt["field"] = "ok"
        return ckpt

    ckpt, _ = migrate_ckpt({}, [migration("add_field", add_field)])

    assert ckpt["field"] == "ok"


def test_migration_sees_what_the_one_before_it_did() -> None:
    def add_field(ckpt: CkptType) -> CkptType:
        return {**ckpt, "field": [1]}

    def extend_field(ckpt: CkptType) -> CkptType:
        ckpt["field"].append(2)
        return ckpt

    ckpt, _ = migrate_ckpt({}, [migration("add", add_field), migration("extend", extend_field)])

    assert ckpt["field"] == [1, 2]


def test_migration_sees_the_names_of_those_that_ran_before_it() -> None:
    seen: list[Any] = []

    def look(ckpt: CkptType) -> CkptType:
        seen.append(deepcopy(ckpt.get(ckpt_migration_key)))
        return ckpt

    migrate_ckpt({}, [migration("a", look), migration("b", look)])

    assert seen == [None, ["a"]]


def test_missed_in_between_never_runs_and_says_nothing() -> None:
    ckpt = history("a", "c")

    ckpt, done = migrate_ckpt(ckpt, [migration(name) for name in "abcd"])

    assert names(done) == ["d"]
    assert ckpt[ckpt_migration_key] == ["a", "c", "d"]


def test_nothing_to_do_returns_the_same_object() -> None:
    ckpt = history("a")

    same, done = migrate_ckpt(ckpt, [migration("a")])

    assert same is ckpt
    assert done == []


def test_no_migrations_at_all_returns_the_same_object() -> None:
    ckpt: dict[str, Any] = {"weight": 1}

    same, done = migrate_ckpt(ckpt, [])

    assert same is ckpt
    assert done == []


def test_checkpoint_passed_in_is_not_changed_even_by_writing_into_its_tensors() -> None:
    def zero(ckpt: CkptType) -> CkptType:
        ckpt["state_dict"]["w"].zero_()
        ckpt["state_dict"]["bias"] = ckpt["state_dict"].pop("b")
        return ckpt

    ckpt = {"state_dict": {"w": torch.ones(2), "b": torch.ones(1)}, **history("a")}

    migrated, _ = migrate_ckpt(ckpt, [migration("a"), migration("b", zero)])

    assert migrated["state_dict"]["w"].tolist() == [0, 0]
    assert list(ckpt["state_dict"]) == ["w", "b"]
    assert ckpt["state_dict"]["w"].tolist() == [1, 1]
    assert ckpt[ckpt_migration_key] == ["a"]


def test_tensors_that_share_storage_share_it_after_the_run() -> None:
    shared = torch.ones(4)

    ckpt, _ = migrate_ckpt({"a": shared, "b": shared[:2]}, [migration("x")])
    ckpt["a"].zero_()

    assert ckpt["b"].tolist() == [0, 0]


def test_flat_state_dict_keeps_its_type_and_has_the_history_under_the_key() -> None:
    ckpt, _ = migrate_ckpt({"weight": torch.ones(1)}, [migration("a")])

    assert type(ckpt) is dict
    assert ckpt[ckpt_migration_key] == ["a"]


def test_checkpoint_is_copied_once_however_many_migrations_run() -> None:
    class Counted:
        copies = 0

        def __deepcopy__(self, memo: dict[int, Any]) -> Counted:
            Counted.copies += 1
            return self

    migrate_ckpt({"x": Counted()}, [migration(name) for name in "abc"])

    assert Counted.copies == 1


def test_history_of_which_no_name_is_known_runs_everything_with_a_warning() -> None:
    ckpt = history("theirs")

    with pytest.warns(HistoryWarning, match=r"names none of these migrations.*theirs") as caught:
        ckpt, done = migrate_ckpt(ckpt, [migration("a")])

    assert names(done) == ["a"]
    assert ckpt[ckpt_migration_key] == ["theirs", "a"]
    assert caught[0].filename == __file__


def test_unknown_name_beside_a_known_one_is_no_reason_to_warn() -> None:
    ckpt = history("library_1", "a")

    with warnings.catch_warnings(record=True) as caught:
        _, done = migrate_ckpt(ckpt, [migration("a"), migration("b")])

    assert names(done) == ["b"]
    assert caught == []


def test_history_that_is_no_list_of_names_is_an_error() -> None:
    with pytest.raises(InvalidHistory, match="holds a str where a list must be"):
        migrate_ckpt({ckpt_migration_key: "a"}, [migration("a")])


def test_folder_of_two_files_whose_second_overwrites_the_firsts_key(
    write_folder: WriteFolder,
) -> None:
    folder = write_folder(
        {
            "0_first.py": "def handle(ckpt):\n    ckpt['first'] = 'done'\n    return ckpt\n",
            "1_second.py": (
                "def handle(ckpt):\n"
                "    ckpt['first'] = 'overwritten'\n"
                "    ckpt['second'] = 'done'\n"
                "    return ckpt\n"
            ),
        }
    )

    ckpt, done = migrate_from_folder({}, folder)

    assert ckpt["first"] == "overwritten"
    assert ckpt["second"] == "done"
    assert ckpt[ckpt_migration_key] == ["0_first", "1_second"]
    assert names(done) == ["0_first", "1_second"]


def test_folder_migrations_have_the_files_stems_as_names(write_folder: WriteFolder) -> None:
    folder = write_folder({"1_x.py": "def handle(ckpt): return ckpt"})

    [only] = get_folder_migrations(str(folder))

    assert only.name == "1_x"
    assert only.callback({}) == {}


def test_migrated_with_a_folder_it_needs_no_second_run(write_folder: WriteFolder) -> None:
    folder = write_folder({"1_x.py": "def handle(ckpt): return ckpt"})
    ckpt, _ = migrate_from_folder({}, folder)

    same, done = migrate_from_folder(ckpt, folder)

    assert same is ckpt
    assert done == []


def test_folder_is_not_imported_if_nothing_is_to_be_run(write_folder: WriteFolder) -> None:
    folder = write_folder({"1_x.py": "raise AssertionError\ndef handle(ckpt): return ckpt"})

    _, done = migrate_from_folder(history("1_x"), folder)

    assert done == []


def test_edited_migration_does_not_run_again_and_is_warned_of(write_folder: WriteFolder) -> None:
    folder = write_folder({"1_x.py": "def handle(ckpt): return ckpt"})
    ckpt, _ = migrate_from_folder({}, folder)
    write_folder({"1_x.py": "def handle(ckpt): return {**ckpt, 'x': 1}"})

    with pytest.warns(HistoryWarning, match=r"Edited since they were applied.*1_x"):
        same, done = migrate_from_folder(ckpt, folder)

    assert same is ckpt
    assert done == []

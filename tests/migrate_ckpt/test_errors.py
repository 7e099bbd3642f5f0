from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from migrate_ckpt import errors
from migrate_ckpt.errors import (
    FolderError,
    ForeignObjectError,
    HistoryRefused,
    InvalidMigrationFile,
    KeysNotFound,
    MigrateCkptError,
    MigrationFailed,
    OrderMismatch,
    RequirementsNotMet,
    TooLarge,
    UnknownMigration,
    UnknownSet,
    UnreadableCheckpoint,
    UnwritableCheckpoint,
)
from migrate_ckpt.plan import Plan, Step
from migrate_ckpt.report import Report

PLAN = Plan("default", None, "strict", None, (Step("a", "", None, "missed", False),))
FOLDER = Path("migrations")
EXAMPLES = [
    MigrateCkptError("x"),
    TooLarge("x"),
    UnwritableCheckpoint("x", where="model.weight"),
    FolderError("x", path=FOLDER),
    InvalidMigrationFile("x", path=FOLDER / "a.py", name="a"),
    OrderMismatch("x", path=FOLDER, names=["10_a", "2_b"]),
    UnknownSet("x", path=FOLDER, name="other", names=["default"]),
    UnknownMigration("x", name="c", names=["a"]),
    HistoryRefused("x", plan=PLAN),
    MigrationFailed("x", name="a", position=1, count=2, report=Report(PLAN)),
    ForeignObjectError("x"),
    RequirementsNotMet("x", missing=["y"], name="a", position=1, count=2, report=Report(PLAN)),
    KeysNotFound("x", operation="drop('k')", keys=["k"]),
]
IDS = [type(error).__name__ for error in EXAMPLES]


def all_errors() -> list[type[MigrateCkptError]]:
    found = [value for value in vars(errors).values() if isinstance(value, type)]
    return [value for value in found if issubclass(value, MigrateCkptError)]


def test_docstring_draws_every_error() -> None:
    drawn = errors.__doc__ or ""

    assert [cls.__name__ for cls in all_errors() if f" {cls.__name__} " not in f" {drawn} "] == [
        "MigrateCkptError",
        "HistoryError",
    ]
    assert "HistoryError\n" in drawn


def test_error_types_are_all_different() -> None:
    types = [cls.error_type for cls in all_errors()]

    assert len(set(types)) == len(types)


@pytest.mark.parametrize("error", EXAMPLES, ids=IDS)
def test_error_becomes_json_with_its_type_and_message(error: MigrateCkptError) -> None:
    data = json.loads(json.dumps(error.to_dict()))

    assert data["error_type"] == error.error_type
    assert data["message"] == "x"
    assert data["retryable"] is False


@pytest.mark.parametrize("error", EXAMPLES, ids=IDS)
def test_error_comes_out_of_another_process_whole(error: MigrateCkptError) -> None:
    copied = pickle.loads(pickle.dumps(error))

    assert type(copied) is type(error)
    assert copied.to_dict() == error.to_dict()


@pytest.mark.parametrize(
    ("error", "data"),
    [
        (EXAMPLES[2], {"where": "model.weight"}),
        (EXAMPLES[4], {"migration": "a"}),
        (EXAMPLES[5], {"names": ["10_a", "2_b"]}),
        (EXAMPLES[6], {"set": "other", "names": ["default"]}),
        (EXAMPLES[7], {"migration": "c", "names": ["a"]}),
        (EXAMPLES[8], {"plan": PLAN.to_dict()}),
        (
            EXAMPLES[9],
            {"migration": "a", "position": 1, "count": 2, "report": Report(PLAN).to_dict()},
        ),
        (
            EXAMPLES[11],
            {
                "migration": "a",
                "position": 1,
                "count": 2,
                "report": Report(PLAN).to_dict(),
                "missing": ["y"],
            },
        ),
        (EXAMPLES[12], {"operation": "drop('k')", "keys": ["k"]}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_error_carries_its_data(error: MigrateCkptError, data: dict[str, object]) -> None:
    known = {"error_type": error.error_type, "message": "x", "retryable": False}

    assert error.to_dict() == {**known, **data}


def test_data_that_is_not_there_is_left_out() -> None:
    assert "where" not in UnwritableCheckpoint("x").to_dict()


def test_foreign_object_error_is_a_type_error_too() -> None:
    assert isinstance(ForeignObjectError("x"), TypeError)


def test_too_large_is_an_unreadable_checkpoint() -> None:
    assert isinstance(TooLarge("x"), UnreadableCheckpoint)

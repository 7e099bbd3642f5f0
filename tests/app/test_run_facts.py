from __future__ import annotations

import asyncio
import math
from pathlib import Path

import pytest
from starlette.requests import ClientDisconnect

from app.errors import RunFailed, ServiceError
from app.run_facts import RunFacts, Timing, read_timings
from migrate_ckpt import MigrationSet, UnreadableCheckpoint, read_set

NOW = 1_700_000_000 * 10**9


@pytest.fixture
def migration_set(tmp_path: Path) -> MigrationSet:
    (tmp_path / "0001_a.py").write_text("def handle(ckpt):\n    return ckpt\n")
    return read_set(tmp_path)


@pytest.mark.parametrize(
    ("error", "outcome", "error_type"),
    [
        (ServiceError("timeout", "it took long"), "failed", "timeout"),
        (UnreadableCheckpoint("it is none"), "failed", "not_a_checkpoint"),
        (RunFailed("made up by a migration", "hm"), "failed", "internal"),
        (ZeroDivisionError(), "failed", "internal"),
        (ClientDisconnect(), "cancelled", "cancelled"),
        (asyncio.CancelledError(), "cancelled", "cancelled"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_error_says_how_a_run_ended_in_words_of_a_list(
    error: BaseException, outcome: str, error_type: str
) -> None:
    run = RunFacts("inspect", 1)

    run.end(error)

    assert (run.outcome, run.error_type) == (outcome, error_type)


@pytest.mark.parametrize(("named", "noted"), [("0001_a", "0001_a"), ("made up", None)])
def test_failed_migration_is_noted_if_the_set_has_it(
    migration_set: MigrationSet, named: str, noted: str | None
) -> None:
    run = RunFacts("migrate", 1, migration_set)

    run.end(RunFailed("migration_failed", "no", migration=named))

    assert run.failed_migration == noted


def test_result_is_taken_with_its_size_and_times(migration_set: MigrationSet) -> None:
    run = RunFacts("migrate", 1, migration_set)
    result = {"pieces": [["new", 0, 5], ["source", 7, 10]]}

    taken = run.take({"result": result, "timings": [["migration", "0001_a", NOW, 0.5]]})

    assert taken == result
    assert run.output_bytes == 15
    assert run.migrations == (Timing("migration", "0001_a", NOW, 0.5),)


@pytest.mark.parametrize(
    "timings",
    [
        None,
        "read",
        {"read": 1},
        [["read"]],
        [["migration", "made up", NOW, 0.5]],
        [["migration", "0001_a", NOW, -1.0]],
        [["migration", "0001_a", NOW, math.inf]],
        [["migration", "0001_a", -NOW, 0.5]],
        [["migration", "0001_a", 2**70, 0.5]],
        [["migration", ["0001_a"], NOW, 0.5]],
        [["sleep", "", NOW, 0.5]],
    ],
    ids=str,
)
def test_times_that_cannot_be_are_left_out(timings: object) -> None:
    assert read_timings(timings, known=frozenset({"0001_a"})) == ()


def test_run_whose_turn_never_came_waited_until_its_end() -> None:
    run = RunFacts("plan", 1)

    run.end(ClientDisconnect())

    assert run.seconds is None
    assert run.queue_seconds >= 0


def test_part_that_is_told_twice_counts_once() -> None:
    once = ["migration", "0001_a", NOW, 0.5]

    timings = read_timings(
        [once, ["migration", "0001_a", NOW, 9.0], once], known=frozenset({"0001_a"})
    )

    assert timings == (Timing("migration", "0001_a", NOW, 0.5),)


def test_migration_that_a_run_says_it_begins_is_noted_if_the_set_has_it(
    migration_set: MigrationSet,
) -> None:
    run = RunFacts("migrate", 1, migration_set)

    run.hear_of("made up")
    run.hear_of("0001_a")
    first = dict(run.steps)
    run.hear_of("0001_a")

    assert list(run.steps) == ["0001_a"]
    assert run.steps == first

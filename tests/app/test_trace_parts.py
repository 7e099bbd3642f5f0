from __future__ import annotations

from pathlib import Path

import pytest
from starlette.requests import ClientDisconnect

from app.errors import RunFailed, ServiceError
from app.request_facts import CLIENT_GONE, RequestFacts
from app.run_facts import RunFacts, Timing
from app.trace_parts import Part, WallClock, request_parts, run_parts
from migrate_ckpt import MigrationSet, read_set

# The monotonic clock began to count at this date.
EPOCH = 1_700_000_000 * 10**9
CLOCK = WallClock(EPOCH)


def at(seconds: float) -> int:
    return EPOCH + round(seconds * 1e9)


@pytest.fixture
def migration_set(tmp_path: Path) -> MigrationSet:
    for name in ("0001_a", "0002_b"):
        (tmp_path / f"{name}.py").write_text("def handle(ckpt):\n    return ckpt\n")
    return read_set(tmp_path)


@pytest.fixture
def run(migration_set: MigrationSet) -> RunFacts:
    """A run that came in at 1, began at 2 and ended at 9."""
    return RunFacts("migrate", 100, migration_set, arrived=1, begun=2, ended=9)


def request(**facts: object) -> RequestFacts:
    known: dict[str, object] = {"begun": 0, "ended": 12, "status": 200, **facts}
    return RequestFacts("POST", "/migrate", "POST /migrate", **known)  # type: ignore[arg-type]


def parts(run: RunFacts) -> list[Part]:
    return list(run_parts(run, CLOCK))


def test_request_is_upload_run_and_response(run: RunFacts) -> None:
    facts = request(receiving=0.5, received=1, answered=10, run=run)

    assert list(request_parts(facts, CLOCK)) == [
        Part("upload", at(0.5), at(1)),
        Part("queue", at(1), at(2)),
        Part("response", at(10), at(12)),
    ]


def test_request_that_was_refused_before_its_upload_has_none() -> None:
    refused = request(answered=11, status=503)

    assert list(request_parts(refused, CLOCK)) == [Part("response", at(11), at(12))]


@pytest.mark.parametrize(
    ("facts", "upload"),
    [
        pytest.param(
            {"answered": 11, "status": 413, "error": {"error_type": "too_large"}},
            Part("upload", at(0.5), at(11), "too_large"),
            id="refused",
        ),
        pytest.param(
            {"status": CLIENT_GONE}, Part("upload", at(0.5), at(12), "cancelled"), id="left"
        ),
    ],
)
def test_upload_that_did_not_end_says_why(facts: dict[str, object], upload: Part) -> None:
    found = next(request_parts(request(receiving=0.5, **facts), CLOCK))

    assert found == upload


def test_answer_to_a_client_that_left_before_it_is_no_part() -> None:
    assert list(request_parts(request(answered=11, status=CLIENT_GONE), CLOCK)) == []


def test_answer_that_its_client_did_not_wait_for_was_cancelled() -> None:
    left = request(answered=11, status=CLIENT_GONE, sent_bytes=7)

    assert list(request_parts(left, CLOCK)) == [Part("response", at(11), at(12), "cancelled")]


def test_run_is_queue_read_migrations_and_write(run: RunFacts) -> None:
    run.timings = (
        Timing("read", "", at(3), 1.0),
        Timing("migration", "0001_a", at(4), 0.5),
        Timing("migration", "0002_b", at(5), 2.0),
        Timing("write", "", at(7), 1.5),
    )

    assert parts(run) == [
        Part("queue", at(1), at(2)),
        Part("read", at(3), at(4)),
        Part("migration", at(4), at(4.5), migration="0001_a"),
        Part("migration", at(5), at(7), migration="0002_b"),
        Part("write", at(7), at(8.5)),
    ]


def test_run_that_failed_did_so_in_the_last_part_that_it_came_to(run: RunFacts) -> None:
    run.timings = (Timing("read", "", at(3), 1.0), Timing("migration", "0001_a", at(4), 0.5))
    run.end(RunFailed("migration_failed", "no", migration="0001_a"))

    assert [(part.name, part.error_type) for part in parts(run)] == [
        ("queue", ""),
        ("read", ""),
        ("migration", "migration_failed"),
    ]


def test_run_that_was_killed_is_known_by_what_was_heard_of_it(run: RunFacts) -> None:
    run.end(ServiceError("timeout", "it took long"))
    run.ended = 9
    run.steps = {"0001_a": at(4), "0002_b": at(5)}

    assert parts(run)[1:] == [
        Part("migration", at(4), at(5), migration="0001_a"),
        Part("migration", at(5), at(9), "timeout", "0002_b"),
    ]


def test_run_whose_turn_never_came_has_its_error_in_the_queue(run: RunFacts) -> None:
    run.begun = None
    run.end(ClientDisconnect())
    run.ended = 9

    assert parts(run) == [Part("queue", at(1), at(9), "cancelled")]


@pytest.mark.parametrize(
    ("begun_ns", "seconds"),
    [(1, 1.0), (2**63 - 1, 1.0), (at(3), 1e300), (1, 1e300)],
    ids=["before", "after", "too long", "for ever"],
)
def test_no_part_of_a_run_is_outside_of_it(run: RunFacts, begun_ns: int, seconds: float) -> None:
    run.timings = (Timing("read", "", begun_ns, seconds),)

    read = parts(run)[1]

    assert at(2) <= read.begun_ns <= read.ended_ns <= at(9)

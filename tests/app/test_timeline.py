from __future__ import annotations

import itertools
import time

import pytest

from app.timeline import Timeline
from migrate_ckpt import Migration, Report
from migrate_ckpt.history import History
from migrate_ckpt.plan import make_plan

SECOND = 10**9


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at it is ten seconds after the one before."""
    ticks = itertools.count(SECOND, 10 * SECOND)
    monkeypatch.setattr(time, "time_ns", lambda: next(ticks))


def report(*names: str, seconds: tuple[float, ...]) -> Report:
    migrations = [Migration(name, lambda ckpt: ckpt) for name in names]
    return Report(make_plan(migrations, History()), ran=names, seconds=seconds)


def test_parts_follow_each_other_and_the_last_one_ends_when_it_is_told() -> None:
    timeline = Timeline()
    timeline.begin("write")

    assert timeline.to_list() == [
        ["read", "", SECOND, 10.0],
        ["write", "", 11 * SECOND, 10.0],
    ]


def test_migration_takes_what_the_report_says_and_the_rest_is_writing() -> None:
    timeline = Timeline()
    timeline.begin("migration", "0001_a")
    timeline.take(report("0001_a", seconds=(0.5,)))
    timeline.begin("write")

    assert timeline.to_list()[1:] == [
        ["migration", "0001_a", 11 * SECOND, 0.5],
        ["write", "", 11 * SECOND + SECOND // 2, 19.5],
    ]


def test_migration_that_failed_took_until_now() -> None:
    timeline = Timeline()
    timeline.begin("migration", "0001_a")
    timeline.begin("migration", "0002_b")
    timeline.take(report("0001_a", seconds=(0.5,)))

    assert timeline.to_list()[1:] == [
        ["migration", "0001_a", 11 * SECOND, 0.5],
        ["migration", "0002_b", 21 * SECOND, 10.0],
    ]


def test_migration_that_did_not_run_is_left_out() -> None:
    timeline = Timeline()
    timeline.begin("migration", "0001_a")
    timeline.begin("migration", "0002_b")
    timeline.take(report("0002_b", seconds=(0.5,)))
    timeline.begin("write")

    assert [part[:2] for part in timeline.to_list()] == [
        ["read", ""],
        ["migration", "0002_b"],
        ["write", ""],
    ]

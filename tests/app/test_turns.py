from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.turns import (
    LARGE_FROM_BYTES,
    MAX_PASSED,
    Limits,
    Turn,
    expected_memory_bytes,
    next_turn,
)

MB, GB = 2**20, 2**30
LIMITS = Limits(runs=3, memory_bytes=16 * GB)
RUN_MEMORY_BYTES = 4 * GB


def small(number: int, *, passed: int = 0) -> Turn:
    return turn(number, 10 * MB, passed=passed)


def large(number: int, *, passed: int = 0) -> Turn:
    return turn(number, 20 * GB, passed=passed)


def turn(number: int, size: int, *, passed: int = 0, limits: Limits = LIMITS) -> Turn:
    memory_bytes = expected_memory_bytes(size, limits=limits, run_memory_bytes=RUN_MEMORY_BYTES)
    return Turn(number, size, memory_bytes, passed)


@pytest.mark.parametrize(
    ("waiting", "running", "next_number"),
    [
        pytest.param([], [], None, id="nobody waits"),
        pytest.param([small(1), small(2)], [], 1, id="the oldest"),
        pytest.param([large(1), small(2)], [], 2, id="small before large"),
        pytest.param([large(1)], [small(2)], 1, id="large where there is room"),
        pytest.param([small(4)], [small(1), small(2), small(3)], None, id="all places taken"),
        pytest.param([large(3)], [large(1), large(2)], None, id="one place is kept for small"),
        pytest.param([large(3), small(4)], [large(1), large(2)], 4, id="small in the kept place"),
        pytest.param([large(1, passed=MAX_PASSED), small(2)], [small(0)], 1, id="due before small"),
        pytest.param(
            [large(3, passed=MAX_PASSED), small(4)],
            [large(1), large(2)],
            4,
            id="small in the kept place beside one that is due",
        ),
        pytest.param(
            [small(1, passed=MAX_PASSED), small(2), large(3)],
            [small(0)],
            1,
            id="small that is due",
        ),
    ],
)
def test_next_turn(waiting: list[Turn], running: list[Turn], next_number: int | None) -> None:
    found = next_turn(waiting, running, LIMITS)

    assert (found and found.number) == next_number


def test_nothing_but_the_kept_place_is_taken_from_one_that_is_due() -> None:
    limits = Limits(runs=4, memory_bytes=4 * GB)
    waiting = [turn(3, 3 * GB, passed=MAX_PASSED, limits=limits), small(4)]
    running = [turn(1, 2 * GB, limits=limits)]

    first = next_turn(waiting, running, limits)
    second = next_turn(waiting, [*running, small(5)], limits)

    assert first is not None
    assert first.number == 4
    assert second is None


def test_memory_is_counted_and_not_only_places() -> None:
    limits = Limits(runs=8, memory_bytes=2 * GB)
    running = [turn(1, 900 * MB, limits=limits), turn(2, 900 * MB, limits=limits)]

    assert next_turn([turn(3, 500 * MB, limits=limits)], running, limits) is None
    assert next_turn([turn(3, 20 * MB, limits=limits)], running, limits) is not None


@pytest.mark.parametrize("limits", [Limits(1, GB), Limits(2, GB), Limits(8, 256 * GB)])
@pytest.mark.parametrize("size", [0, 100 * MB, LARGE_FROM_BYTES, 500 * GB])
def test_run_of_any_size_begins_where_it_is_alone(limits: Limits, size: int) -> None:
    alone = turn(1, size, limits=limits)

    assert next_turn([alone], [], limits) == alone


def test_run_is_counted_with_no_more_than_it_may_hold() -> None:
    assert large(1).memory_bytes == RUN_MEMORY_BYTES
    assert 10 * MB < small(1).memory_bytes < 100 * MB


SIZES = st.sampled_from([MB, 200 * MB, 2 * GB, 50 * GB])


def begin_all(
    waiting: list[Turn], running: list[Turn], limits: Limits
) -> tuple[list[Turn], list[Turn]]:
    """Begin every run whose turn it is, as the service does."""
    while found := next_turn(waiting, running, limits):
        running = [*running, found]
        waiting = [
            replace(other, passed=other.passed + (other.number < found.number))
            for other in waiting
            if other != found
        ]
    return waiting, running


@given(
    limits=st.builds(Limits, st.integers(1, 5), st.sampled_from([GB, 4 * GB, 64 * GB])),
    sizes=st.lists(SIZES, min_size=1, max_size=60),
    ends=st.lists(st.integers(0, 10), min_size=60, max_size=60),
)
def test_whatever_comes_every_run_begins_and_the_limits_hold(
    limits: Limits, sizes: Sequence[int], ends: Sequence[int]
) -> None:
    waiting: list[Turn] = []
    running: list[Turn] = []
    for number, (size, end) in enumerate(zip(sizes, ends, strict=False)):
        waiting = [*waiting, turn(number, size, limits=limits)]
        waiting, running = begin_all(waiting, running, limits)

        assert running
        assert len(running) <= limits.runs
        assert sum(other.memory_bytes for other in running) <= limits.memory_bytes
        if limits.runs > 1:
            assert sum(other.is_large for other in running) < limits.runs
        if end < len(running):
            del running[end]
            waiting, running = begin_all(waiting, running, limits)

    while waiting:
        assert running
        del running[0]
        waiting, running = begin_all(waiting, running, limits)


def test_large_run_begins_although_small_ones_never_stop_coming() -> None:
    waiting, running = [large(0)], [small(1), small(2), small(3)]

    for number in range(4, 100):
        # One ends, and there is always another.
        del running[0]
        waiting = [*waiting, small(number), small(number + 1000)]
        waiting, running = begin_all(waiting, running, LIMITS)
        if any(other.is_large for other in running):
            break

    assert number - 4 <= MAX_PASSED


def test_small_runs_go_on_while_large_ones_never_stop_coming() -> None:
    waiting = [large(number) for number in range(50)]
    waiting, running = begin_all(waiting, [], LIMITS)

    for number in range(50, 100):
        waiting, running = begin_all([*waiting, small(number)], running, LIMITS)

        assert running[-1].number == number
        del running[-1]

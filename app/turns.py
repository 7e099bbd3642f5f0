"""Whose turn it is: which of the waiting runs begins next, decided from plain facts.

A run of a large checkpoint takes minutes and gigabytes, a small one neither. So:

* Small runs go first, the oldest of them before the others; then the oldest large one.
* Where more than one run at once is allowed, one place and the memory of one small run are kept for
  small runs, however many large ones wait.
* But a run that ten later ones have passed is due: until it has begun, nothing else begins but one
  small run at a time, in the place that is kept.

Small runs then never wait for a large one that is under way, and large ones wait no longer than ten
small runs, and those that hold what they need, take.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

LARGE_FROM_BYTES = 2**30
MAX_PASSED = 10

# Beside the tensors that its migrations touch, which are at most the file.
_MEMORY_OF_ANY_RUN_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Turn:
    """A run that waits for its turn, or has it; numbers are given out in the order of arrival."""

    number: int
    size: int
    memory_bytes: int
    passed: int = 0

    @property
    def is_large(self) -> bool:
        return self.size >= LARGE_FROM_BYTES


@dataclass(frozen=True, slots=True)
class Limits:
    """How many runs there may be at once, and what they may be expected to hold together."""

    runs: int
    memory_bytes: int

    @property
    def kept_runs(self) -> int:
        return 1 if self.runs > 1 else 0

    @property
    def kept_memory_bytes(self) -> int:
        """Half of it where it is little: large runs have to fit as well."""
        most = LARGE_FROM_BYTES + _MEMORY_OF_ANY_RUN_BYTES
        return min(most, self.memory_bytes // 2) if self.kept_runs else 0


def expected_memory_bytes(size: int, *, limits: Limits, run_memory_bytes: int) -> int:
    """Return what a run over a file of this size is counted with.

    It can hold no more than one run may; and it is counted with what there is if that is less, so
    that it waits until it is alone, and not for ever.
    """
    there_is = limits.memory_bytes
    if size >= LARGE_FROM_BYTES:
        there_is -= limits.kept_memory_bytes
    return min(size + _MEMORY_OF_ANY_RUN_BYTES, run_memory_bytes, there_is)


def next_turn(waiting: Sequence[Turn], running: Collection[Turn], limits: Limits) -> Turn | None:
    """Return the run to begin now, or None where none can.

    Args:
        waiting: in the order of arrival.
        running: those under way.
        limits: what all of them together keep to.
    """
    fitting = [turn for turn in waiting if _fits(turn, running, limits)]
    in_order = sorted(fitting, key=lambda turn: (turn.is_large, turn.number))
    due = next((turn for turn in waiting if turn.passed >= MAX_PASSED), None)
    if due is None:
        return next(iter(in_order), None)
    if due in fitting:
        return due
    is_kept_place_free = limits.kept_runs > sum(not turn.is_large for turn in running)
    small = (turn for turn in in_order if not turn.is_large and is_kept_place_free)
    return next(small, None)


def _fits(turn: Turn, running: Collection[Turn], limits: Limits) -> bool:
    runs, memory_bytes = limits.runs, limits.memory_bytes
    if not _is_room(turn, running, runs, memory_bytes):
        return False
    if not turn.is_large:
        return True
    large = [other for other in running if other.is_large]
    runs, memory_bytes = runs - limits.kept_runs, memory_bytes - limits.kept_memory_bytes
    return _is_room(turn, large, runs, memory_bytes)


def _is_room(turn: Turn, others: Collection[Turn], runs: int, memory_bytes: int) -> bool:
    held = sum(other.memory_bytes for other in others)
    return len(others) < runs and held + turn.memory_bytes <= memory_bytes

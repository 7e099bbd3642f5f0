"""What a trace shows of a request: its parts with their times, made of what is known of it once it is answered."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from app.request_facts import CLIENT_GONE, RequestFacts
from app.run_facts import RunFacts, Timing


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a request or of a run, from when to when in nanoseconds since 1970.

    Attributes:
        name: upload, queue, read, migration, write or response.
        error_type: empty where all went well.
        migration: which one it is.
    """

    name: str
    begun_ns: int
    ended_ns: int
    error_type: str = ""
    migration: str | None = None


@dataclass(frozen=True, slots=True)
class WallClock:
    """Tells the date of a time of the monotonic clock, by how the two stood to each other at one moment."""

    offset_ns: int

    @classmethod
    def now(cls) -> WallClock:
        return cls(time.time_ns() - time.monotonic_ns())

    def at(self, seconds: float) -> int:
        """Return in nanoseconds since 1970 what the monotonic clock called so many seconds."""
        return self.offset_ns + round(seconds * 1e9)


def request_parts(facts: RequestFacts, clock: WallClock) -> Iterator[Part]:
    """Return the parts of a request that has ended: upload, those of its run, response."""
    assert facts.ended is not None
    if facts.receiving is not None:
        received = facts.received or facts.answered or facts.ended
        error_type = "" if facts.received else facts.error_type or "cancelled"
        yield Part("upload", clock.at(facts.receiving), clock.at(received), error_type)
    if facts.run is not None:
        yield from run_parts(facts.run, clock)
    is_gone = facts.status == CLIENT_GONE
    if facts.answered is not None and not (is_gone and not facts.sent_bytes):
        error_type = "cancelled" if is_gone else ""
        yield Part("response", clock.at(facts.answered), clock.at(facts.ended), error_type)


def run_parts(run: RunFacts, clock: WallClock) -> Iterator[Part]:
    """Return the parts of a run that has ended: queue, read, each migration, write.

    A run that failed did so in the last part that it came to.
    """
    assert run.ended is not None
    turn = run.ended if run.begun is None else run.begun
    error_type = run.error_type if run.begun is None else ""
    yield Part("queue", clock.at(run.arrived), clock.at(turn), error_type)
    if run.begun is None:
        return
    begun_ns, ended_ns = clock.at(run.begun), clock.at(run.ended)
    timings = run.timings or _heard(run.steps, ended_ns)
    for timing, following in zip_longest(timings, timings[1:]):
        # A run may say of its times what it likes, but not that they were outside of it.
        began = min(max(timing.begun_ns, begun_ns), ended_ns)
        yield Part(
            timing.phase,
            began,
            min(began + round(min(timing.seconds, 1e9) * 1e9), ended_ns),
            "" if following else run.error_type,
            timing.name or None,
        )


def _heard(steps: Mapping[str, int], ended_ns: int) -> Sequence[Timing]:
    """Make up the times of a run that did not come to tell them, from when it was heard to begin its migrations."""
    return [
        Timing("migration", name, begun_ns, max(end_ns - begun_ns, 0) / 1e9)
        for (name, begun_ns), end_ns in zip(
            steps.items(), [*steps.values(), ended_ns][1:], strict=True
        )
    ]

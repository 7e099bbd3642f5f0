"""What is known of one run once it has ended: for the metrics, the log and the trace."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.requests import ClientDisconnect

from app.errors import STATUSES, RunFailed, ServiceError
from migrate_ckpt import MigrateCkptError, MigrationSet

Outcome = Literal["succeeded", "failed", "cancelled"]
Phase = Literal["read", "migration", "write"]

# What a run says of itself was written where migrations run: more than this none has to say.
MAX_TIMINGS = 10_000


@dataclass(frozen=True, slots=True)
class Timing:
    """When a part of a run began and how long it took; a migration has a name."""

    phase: Phase
    name: str
    begun_ns: int
    seconds: float


@dataclass(slots=True)
class RunFacts:
    """Filled in as the run goes on; times are those of the monotonic clock, in seconds."""

    action: Literal["migrate", "plan", "inspect"]
    input_bytes: int
    migration_set: MigrationSet | None = None
    arrived: float = field(default_factory=time.monotonic)
    begun: float | None = None
    ended: float | None = None
    outcome: Outcome = "succeeded"
    error_type: str = ""
    failed_migration: str | None = None
    output_bytes: int | None = None
    peak_bytes: int = 0
    timings: tuple[Timing, ...] = ()
    # When it was heard to begin each migration, in nanoseconds since 1970: known of a run that is killed, too.
    steps: dict[str, int] = field(default_factory=dict)

    @property
    def queue_seconds(self) -> float:
        return (self.begun or self.ended or self.arrived) - self.arrived

    @property
    def seconds(self) -> float | None:
        """Between its turn and its end; None where its turn never came."""
        return None if self.begun is None or self.ended is None else self.ended - self.begun

    @property
    def migrations(self) -> tuple[Timing, ...]:
        """Those that ran, and the one that failed if it said when."""
        return tuple(timing for timing in self.timings if timing.phase == "migration")

    def begin(self) -> None:
        self.begun = time.monotonic()

    def hear_of(self, migration: str) -> None:
        """Note that it says it begins a migration, if there is one of this name."""
        if migration in self._names():
            self.steps.setdefault(migration, time.time_ns())

    def take(self, outcome: Mapping[str, Any]) -> dict[str, Any]:
        """Take what the run has written down, as far as it makes sense, and return its result.

        Raises:
            RunFailed: it has none.
        """
        self.timings = read_timings(outcome.get("timings"), known=self._names())
        if "error" in outcome:
            raise RunFailed.from_dict(outcome["error"])
        result: dict[str, Any] = outcome["result"]
        if "pieces" in result:
            self.output_bytes = sum(count for _, _, count in result["pieces"])
        return result

    def end(self, error: BaseException | None = None) -> None:
        self.ended = time.monotonic()
        if error is None:
            return
        self.outcome = "failed"
        self.error_type = error_type_of(error)
        if isinstance(error, ClientDisconnect | asyncio.CancelledError):
            self.outcome = "cancelled"
        if isinstance(error, ServiceError) and error.data.get("migration") in self._names():
            self.failed_migration = str(error.data["migration"])

    def _names(self) -> frozenset[str]:
        files = self.migration_set.files if self.migration_set else ()
        return frozenset(file.name for file in files)


def error_type_of(error: BaseException) -> str:
    """Return one of the error types that there are, whatever the error says."""
    if isinstance(error, ClientDisconnect | asyncio.CancelledError):
        return "cancelled"
    given = error.error_type if isinstance(error, ServiceError | MigrateCkptError) else ""
    return given if given in STATUSES else "internal"


def read_timings(value: object, *, known: frozenset[str]) -> tuple[Timing, ...]:
    """Read what a run says of its parts; what it cannot have done is left out."""
    timings: dict[tuple[Phase, str], Timing] = {}
    for entry in value[:MAX_TIMINGS] if isinstance(value, list) else ():
        match entry:
            case [("read" | "write") as phase, "", int(begun_ns), float(seconds)]:
                timings.setdefault((phase, ""), Timing(phase, "", begun_ns, seconds))
            case ["migration", str(name), int(begun_ns), float(seconds)] if name in known:
                timings.setdefault(
                    ("migration", name), Timing("migration", name, begun_ns, seconds)
                )
    return tuple(timing for timing in timings.values() if _is_possible(timing))


def _is_possible(timing: Timing) -> bool:
    return math.isfinite(timing.seconds) and timing.seconds >= 0 and 0 < timing.begun_ns < 2**63

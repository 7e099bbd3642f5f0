"""The parts of a run with their times, noted where it happens and told with its outcome."""

from __future__ import annotations

import time
from itertools import zip_longest
from typing import Any

from migrate_ckpt import Report


class Timeline:
    """One part after the other: the file is read, migrations run, the new bytes are made and written."""

    def __init__(self) -> None:
        # Phase, name, and when it began, in nanoseconds since 1970.
        self._parts: list[tuple[str, str, int]] = [("read", "", time.time_ns())]
        self._seconds: dict[str, float] = {}

    def begin(self, phase: str, name: str = "") -> None:
        self._parts.append((phase, name, time.time_ns()))

    def take(self, report: Report) -> None:
        """Take what each migration took by itself."""
        self._seconds = dict(zip(report.ran, report.seconds, strict=True))

    def to_list(self) -> list[list[Any]]:
        """Return [phase, name, begin, seconds] of each part, the last of which ends now.

        A migration that is not in the report has failed if it is the last part, and else did not run.
        """
        timings: list[list[Any]] = []
        ends = [begun for _, _, begun in self._parts[1:]]
        ended = 0
        for (phase, name, begun), end in zip_longest(self._parts, ends):
            if phase == "write":
                # It begins where the last migration ended: the new file is laid out before it is written.
                begun = ended or begun
            if name in self._seconds:
                ended = begun + round(self._seconds[name] * 1e9)
            elif phase == "migration" and end is not None:
                continue
            else:
                ended = end or time.time_ns()
            timings.append([phase, name, begun, max(ended - begun, 0) / 1e9])
        return timings

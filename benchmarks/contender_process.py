"""Runs a contender in a process of its own, which is ready before the clock starts.

A contender is a generator: what is before its `yield` is set-up and not on the clock, what comes after is measured. The
process says `ready` in between, waits for a line, and ends with the seconds that it took.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from memory import Peak, held_bytes


def work(steps: Iterator[None]) -> None:
    """What the process does with its contender."""
    next(steps)
    print("ready", flush=True)
    sys.stdin.readline()
    started = time.perf_counter()
    next(steps, None)
    print(time.perf_counter() - started)


def seconds_of(arguments: Sequence[object]) -> float:
    """Of the work alone. Raises CalledProcessError when the process fails."""
    with _ready(arguments) as process:
        seconds, _ = process.communicate("go\n")
    return float(seconds)


def peak_of(arguments: Sequence[object]) -> int:
    """The most bytes of memory that it held above what it held before the work. Raises as `seconds_of` does."""
    with _ready(arguments) as process:
        before = held_bytes(process.pid)
        with Peak(process.pid) as peak:
            process.communicate("go\n")
    return max(0, peak.bytes - before)


@contextlib.contextmanager
def _ready(arguments: Sequence[object]) -> Iterator[subprocess.Popen[str]]:
    # What the one before left to be flushed is not this one's to wait for.
    os.sync()
    command = [sys.executable, *map(str, arguments)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        if process.stdout.readline():
            yield process
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)

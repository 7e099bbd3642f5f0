"""Measure the library beside what one would write without it, on one machine, in one run.

    make bench BENCH="library --sizes 1GB --rounds 3"

Each round runs every contender of a case once, one after the other, so that a slow moment of the
machine hits all of them; each run is a fresh process. Files are in the page cache. Memory is taken,
and the result checked, in a round of its own. `contenders.py` says who they are.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import checkpoints
from contender_process import peak_of, seconds_of

PROGRAM = Path(__file__).with_name("contenders.py")


@dataclass(frozen=True)
class Case:
    """What is measured in one table.

    Attributes:
        title: Its heading; `{}` is the size of the file, in MB.
        kind: What its checkpoint holds, a name of `checkpoints.KINDS`.
        set_name: The set of migrations that is run.
        labels: What the table calls the contenders, by their names.
        reference: The contender that the others' time is a share of.
    """

    title: str
    kind: str
    set_name: str
    labels: dict[str, str]
    reference: str


CASES = {
    "file": Case(
        "A file of {:,.0f} MB, three renames",
        "large",
        "three_renames",
        {
            "copy_file": "`cp`, fsync",
            "migrate_file": "ours, fsync",
            "map_save": "mapped `torch.load`, `torch.save`",
            "load_copy_save": "`torch.load`, deep copy, `torch.save`",
        },
        "copy_file",
    ),
    "tensors": Case(
        "Small tensors, a file of {:,.0f} MB, one rename",
        "tensors",
        "default",
        {"migrate_file": "ours, fsync", "load_save": "`torch.load`, `torch.save`"},
        "load_save",
    ),
    "entries": Case(
        "A plain dict, a file of {:,.0f} MB, one rename",
        "entries",
        "default",
        {"migrate_file": "ours, fsync", "load_save": "`torch.load`, `torch.save`"},
        "load_save",
    ),
    "memory": Case(
        "In memory, tensors of {:,.0f} MB, three renames, then `torch.save`",
        "large",
        "three_renames",
        {"migrate_in_memory": "ours", "copy_in_memory": "a deep copy per migration"},
        "copy_in_memory",
    ),
}


@dataclass(frozen=True)
class Timing:
    """Seconds of the work alone, and of the whole process with interpreter and imports."""

    work: float
    process: float


class Runner:
    """Runs the contenders of one case on one file."""

    def __init__(self, case: Case, source: Path, target: Path) -> None:
        self._case = case
        self._source = source
        self._target = target

    def peak_and_check(self, name: str) -> int:
        """The most bytes of memory that it held above what it held before it began."""
        peak = peak_of(self._command(name))
        if name != "copy_file":
            checkpoints.check(self._source, self._target, self._case.set_name)
        return peak

    def time(self, name: str) -> Timing:
        command = self._command(name)
        started = time.perf_counter()
        work = seconds_of(command)
        return Timing(work, time.perf_counter() - started)

    def _command(self, name: str) -> list[object]:
        """What runs a contender, whose target is not there yet."""
        self._target.unlink(missing_ok=True)
        return [PROGRAM, name, self._source, self._target, self._case.set_name]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--tensors", type=int, default=50_000, help="of the case `tensors`")
    parser.add_argument("--entries", type=int, default=400_000, help="of the case `entries`")


def measure_all(options: argparse.Namespace, folder: Path) -> None:
    counts = {
        "large": options.sizes,
        "tensors": [options.tensors],
        "entries": [options.entries],
    }
    for name in options.cases:
        for count in counts[CASES[name].kind]:
            measure(CASES[name], folder, count, options.rounds)


def measure(case: Case, folder: Path, count: int, rounds: int) -> None:
    """Print one table: a line per contender."""
    source, target = folder / "old.ckpt", folder / "new.ckpt"
    checkpoints.make(source, case.kind, count)
    runner = Runner(case, source, target)
    peaks = {name: runner.peak_and_check(name) for name in case.labels}
    timings: dict[str, list[Timing]] = {name: [] for name in case.labels}
    for _ in range(rounds):
        for name in case.labels:
            timings[name].append(runner.time(name))
    print_table(case, timings, peaks, source.stat().st_size)
    source.unlink()
    target.unlink()


def print_table(
    case: Case, timings: dict[str, list[Timing]], peaks: dict[str, int], size: int
) -> None:
    reference = statistics.median(timing.work for timing in timings[case.reference])
    print(f"\n### {case.title.format(size / 1e6)}\n")
    print(f"| contender | seconds | of {case.labels[case.reference]} | whole process | memory |")
    print("|---|---|---|---|---|")
    for name, label in case.labels.items():
        work = [timing.work for timing in timings[name]]
        process = statistics.median(timing.process for timing in timings[name])
        median = statistics.median(work)
        print(
            f"| {label} | {median:.3f} ({min(work):.3f} to {max(work):.3f}) "
            f"| {median / reference:.2f} | {process:.2f} | {peaks[name] / 1e6:,.0f} MB |"
        )

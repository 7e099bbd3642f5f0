"""Measure the drafting of a migration from two checkpoints, beside reading both once and beside loading both.

    make bench BENCH="draft --sizes 1GB 10GB --rounds 3"

The new checkpoint has the old one's tensors under other names, three of each four joined in one. Each run is a process
of its own, which is ready before the clock starts; memory is taken in a round of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from memory import Peak, held_bytes

LAYERS = 16
LABELS = {
    "draft": "ours",
    "read_once": "SHA-256 of both",
    "load_both": "`torch.load` of both, no more",
}
REFERENCE = "read_once"


def draft(old: Path, new: Path) -> Iterator[None]:
    """Ours, with the proof."""
    import torch  # noqa: F401 - loaded on demand, and nobody's time to load it counts

    from migrate_ckpt import draft_migration

    yield
    made = draft_migration(old, new)
    assert made.is_proved, "what was drafted does not make the new file"
    assert made.is_complete, "something was not found"


def read_once(old: Path, new: Path) -> Iterator[None]:
    """The limit: looks at each byte of both."""
    yield
    for path in (old, new):
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)


def load_both(old: Path, new: Path) -> Iterator[None]:
    """What any script does first."""
    import torch

    yield
    loaded = [torch.load(path, weights_only=True) for path in (old, new)]
    assert len(loaded) == 2


CONTENDERS: dict[str, Callable[[Path, Path], Iterator[None]]] = {
    "draft": draft,
    "read_once": read_once,
    "load_both": load_both,
}


def make(old: str, new: str, size: str) -> None:
    import torch

    side = int((int(size) / 4 / LAYERS / 4) ** 0.5)
    before, after = {}, {}
    for layer in range(LAYERS):
        parts = {name: torch.rand(side, side) for name in "qkvo"}
        before |= {f"model.blocks.{layer}.{name}.weight": w for name, w in parts.items()}
        after[f"layers.{layer}.qkv.weight"] = torch.cat([parts[name] for name in "qkv"])
        after[f"layers.{layer}.out.weight"] = parts["o"]
    torch.save({"state_dict": before}, old)
    torch.save({"state_dict": after}, new)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--contenders",
        nargs="+",
        choices=LABELS,
        default=list(LABELS),
        help=f"with {REFERENCE}; load_both needs the memory for both",
    )


def measure_all(options: argparse.Namespace, folder: Path) -> None:
    old, new = folder / "old.ckpt", folder / "new.ckpt"
    for size in options.sizes:
        _run("make", old, new, size)
        names = options.contenders
        peaks = {name: peak_of(name, old, new) for name in names}
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(options.rounds):
            for name in names:
                with ready(name, old, new) as process:
                    seconds[name].append(float(process.communicate("go\n")[0]))
        print_table(size, seconds, peaks)


def peak_of(name: str, old: Path, new: Path) -> int:
    """The most bytes of memory that a contender held above what it held before it began."""
    with ready(name, old, new) as process:
        before = held_bytes(process.pid)
        with Peak(process.pid) as peak:
            process.communicate("go\n")
    return max(0, peak.bytes - before)


@contextlib.contextmanager
def ready(name: str, old: Path, new: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has done all but the work. Raises CalledProcessError when it fails."""
    os.sync()
    command = [sys.executable, __file__, "run", name, old, new]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        if process.stdout.readline():
            yield process
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def print_table(size: int, seconds: dict[str, list[float]], peaks: dict[str, int]) -> None:
    reference = statistics.median(seconds[REFERENCE])
    print(f"\n### A migration drafted of two files of {size / 1e6:,.0f} MB each\n")
    print(f"| contender | seconds | of {LABELS[REFERENCE]} | memory |")
    print("|---|---|---|---|")
    for name, times in seconds.items():
        label, median = LABELS[name], statistics.median(times)
        print(
            f"| {label} | {median:.2f} ({min(times):.2f} to {max(times):.2f}) "
            f"| {median / reference:.2f} | {peaks[name] / 1e6:,.0f} MB |"
        )


def work(name: str, old: str, new: str) -> None:
    steps = CONTENDERS[name](Path(old), Path(new))
    next(steps)
    print("ready", flush=True)
    sys.stdin.readline()
    started = time.perf_counter()
    next(steps, None)
    print(time.perf_counter() - started)


def _run(*arguments: object) -> None:
    subprocess.run([sys.executable, __file__, *map(str, arguments)], check=True)


if __name__ == "__main__":
    {"make": make, "run": work}[sys.argv[1]](*sys.argv[2:])

"""Measure the drafting of a migration from two checkpoints, beside reading both once and beside loading both.

    make bench BENCH="draft --sizes 1GB 10GB --rounds 3"

The new checkpoint has the old one's tensors under other names, three of each four joined in one. Memory is taken in
a round of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from contender_process import peak_of, seconds_of, work

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
        commands = {name: (__file__, "run", name, old, new) for name in names}
        peaks = {name: peak_of(command) for name, command in commands.items()}
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(options.rounds):
            for name, command in commands.items():
                seconds[name].append(seconds_of(command))
        print_table(size, seconds, peaks)


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


def run(name: str, old: str, new: str) -> None:
    work(CONTENDERS[name](Path(old), Path(new)))


def _run(*arguments: object) -> None:
    subprocess.run([sys.executable, __file__, *map(str, arguments)], check=True)


if __name__ == "__main__":
    {"make": make, "run": run}[sys.argv[1]](*sys.argv[2:])

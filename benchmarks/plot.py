"""Draw time and memory against the size of a file, for the library and for what one would write without it.

    make bench BENCH="plot --sizes 10MB 100MB 1GB 4GB --rounds 3"

The same case and contenders as `library` has for a file. The picture goes to `docs/size.svg`, its numbers are printed.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import checkpoints
from library import CASES, Runner

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "size.svg"
MEGABYTE = 1e6


def measure_all(options: argparse.Namespace, folder: Path) -> None:
    case = CASES["file"]
    sizes: list[int] = []
    seconds: dict[str, list[float]] = {name: [] for name in case.labels}
    peaks: dict[str, list[float]] = {name: [] for name in case.labels}
    for wanted in options.sizes:
        source, target = folder / "old.ckpt", folder / "new.ckpt"
        checkpoints.make(source, case.kind, wanted)
        sizes.append(source.stat().st_size)
        runner = Runner(case, source, target)
        for name in case.labels:
            peaks[name].append(runner.peak_and_check(name) / MEGABYTE)
        times: dict[str, list[float]] = {name: [] for name in case.labels}
        for _ in range(options.rounds):
            for name in case.labels:
                times[name].append(runner.time(name).work)
        for name in case.labels:
            seconds[name].append(statistics.median(times[name]))
        target.unlink()
        source.unlink()
    print_table(case.labels, sizes, seconds, peaks)
    draw(case.labels, sizes, seconds, peaks, options.output)


def print_table(
    labels: dict[str, str],
    sizes: list[int],
    seconds: dict[str, list[float]],
    peaks: dict[str, list[float]],
) -> None:
    print(f"\n| contender | {' | '.join(f'{size / MEGABYTE:,.0f} MB' for size in sizes)} |")
    print(f"|---|{'---|' * len(sizes)}")
    for name, label in labels.items():
        cells = [
            f"{second:.3f} s, {peak:,.0f} MB"
            for second, peak in zip(seconds[name], peaks[name], strict=True)
        ]
        print(f"| {label} | {' | '.join(cells)} |")


def draw(
    labels: dict[str, str],
    sizes: list[int],
    seconds: dict[str, list[float]],
    peaks: dict[str, list[float]],
    path: Path,
) -> None:
    import matplotlib

    matplotlib.use("svg")
    # The same numbers are the same bytes.
    matplotlib.rcParams["svg.hashsalt"] = "migrate-ckpt"
    from matplotlib import pyplot

    figure, (of_time, of_memory) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    in_megabytes = [size / MEGABYTE for size in sizes]
    for name, label in labels.items():
        is_ours = name == "migrate_file"
        style = {
            "marker": "o",
            "linewidth": 2.5 if is_ours else 1.5,
            "label": label.replace("`", ""),
        }
        of_time.plot(in_megabytes, seconds[name], **style)
        of_memory.plot(in_megabytes, [max(peak, 1) for peak in peaks[name]], **style)
    for axes, what in ((of_time, "seconds"), (of_memory, "memory of the process, MB")):
        axes.set(xscale="log", yscale="log", xlabel="size of the file, MB", ylabel=what)
        axes.grid(alpha=0.3)
    of_time.legend()
    figure.savefig(path, metadata={"Date": None})

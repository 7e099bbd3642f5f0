"""Measure library and service beside others: `python benchmarks [library|service|load|buckets|draft|plot] [options]`.

Without arguments the first two are measured, with their defaults. What is printed is Markdown, to keep.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import re
import shlex
import sys
import tempfile
from pathlib import Path

import draft
import library
import load
import plot
import service

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def main() -> None:
    arguments = sys.argv[1:]
    runs = [arguments] if arguments else [["library"], ["service"]]
    for run in runs:
        options = parse_arguments(run)
        print_setting(run, options.rounds)
        with tempfile.TemporaryDirectory(prefix="migrate-ckpt-bench-", dir=options.folder) as name:
            options.measure_all(options, Path(name))


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks", description="Measure beside others.")
    commands = parser.add_subparsers(
        required=True, metavar="library|service|load|buckets|draft|plot"
    )
    of_library = commands.add_parser("library", help="in one process, beside torch and `cp`")
    add_arguments(of_library, sizes=["1GB"], rounds=3)
    library.add_arguments(of_library)
    of_library.set_defaults(measure_all=library.measure_all)
    of_service = commands.add_parser("service", help="over HTTP, beside `naive` and `echo`")
    add_arguments(of_service, sizes=["1GB", "100MB"], rounds=5)
    of_service.set_defaults(measure_all=service.measure_all)
    of_load = commands.add_parser("load", help="clients in parallel, every answer checked")
    load.add_arguments(of_load)
    of_load.add_argument("--folder", type=Path, help="where checkpoints and scratch files go")
    of_load.set_defaults(measure_all=load.measure_all, rounds=None)
    of_buckets = commands.add_parser("buckets", help="jobs from bucket to bucket, beside `copy`")
    add_arguments(of_buckets, sizes=["1GB"], rounds=3)
    of_buckets.set_defaults(measure_all=measure_buckets)
    of_draft = commands.add_parser("draft", help="a migration drafted of two checkpoints")
    add_arguments(of_draft, sizes=["1GB"], rounds=3)
    draft.add_arguments(of_draft)
    of_draft.set_defaults(measure_all=draft.measure_all)
    of_plot = commands.add_parser("plot", help="time and memory against size, as a picture")
    add_arguments(of_plot, sizes=["10MB", "100MB", "1GB", "4GB"], rounds=3)
    of_plot.add_argument("--output", type=Path, default=plot.PICTURE)
    of_plot.set_defaults(measure_all=plot.measure_all)
    return parser.parse_args(arguments)


def measure_buckets(options: argparse.Namespace, folder: Path) -> None:
    # Needs the extra [jobs] and an S3 server, which the others do not.
    import buckets

    buckets.measure_all(options, folder)


def add_arguments(parser: argparse.ArgumentParser, *, sizes: list[str], rounds: int) -> None:
    default = list(map(size_in_bytes, sizes))
    parser.add_argument("--sizes", nargs="+", type=size_in_bytes, default=default)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--folder", type=Path, help="where checkpoints and scratch files go")


def size_in_bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+)(KB|MB|GB)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 100MB")
    return int(found[1]) * UNITS[found[2]]


def print_setting(arguments: list[str], rounds: int | None) -> None:
    torch = importlib.metadata.version("torch")
    print(f"\n```sh\nmake bench BENCH={shlex.quote(shlex.join(arguments))}\n```\n")
    print(f"{os.cpu_count()} cores, {platform.system()} {platform.release()},", end=" ")
    print(f"Python {platform.python_version()}, torch {torch};")
    if rounds is not None:
        print(f"medians of {rounds} interleaved rounds, in brackets the fastest and the slowest.")


if __name__ == "__main__":
    main()

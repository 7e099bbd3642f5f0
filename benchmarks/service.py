"""Measure the service beside two others, in one run: a checkpoint there and back, and memory.

    make bench BENCH="service --sizes 1GB 100MB --rounds 5"

Each round asks every service once, one after the other, so that a slow moment of the machine hits
all of them. Times are curl's own, files are in the page cache, the answer is written to a file.
Memory is taken in a round of its own. `peers.py` says what `naive` and `echo` are.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import checkpoints
from memory import Peak

HERE = Path(__file__).resolve().parent
START_SECONDS = 60


@dataclass(frozen=True)
class Contender:
    """One way of sending a file to one service."""

    name: str
    way: str
    port: int
    pid: int
    curl: tuple[str, ...]
    is_migrating: bool = True

    def ask(self, source: Path, target: Path) -> float:
        """Seconds that curl took. Raises CalledProcessError when the answer is an error."""
        arguments = [part.format(source=source, port=self.port) for part in self.curl]
        command = ["curl", "--silent", "--show-error", "--fail-with-body", *arguments]
        command += ["-o", str(target), "-w", "%{time_total}"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return float(done.stdout)


def measure_all(options: argparse.Namespace, folder: Path) -> None:
    with contextlib.ExitStack() as stack:
        contenders = start_all(stack, folder)
        for size in options.sizes:
            measure(contenders, folder, size, options.rounds)


def start_all(stack: contextlib.ExitStack, folder: Path) -> list[Contender]:
    uvicorn = [
        "-m",
        "uvicorn",
        "--app-dir",
        str(HERE),
        "--log-level",
        "warning",
        "--port",
        "{port}",
    ]
    ours = stack.enter_context(server(["-m", "app", "serve"], folder, "/readyz"))
    naive = stack.enter_context(server([*uvicorn, "peers:naive"], folder, "/docs"))
    echo = stack.enter_context(server([*uvicorn, "peers:echo"], folder, "/"))
    form = ("-F", "file=@{source}", "http://127.0.0.1:{port}/migrate")
    put = ("-T", "{source}", "http://127.0.0.1:{port}/migrate/")
    return [
        Contender("echo", "multipart", *echo, form, is_migrating=False),
        Contender("ours", "multipart", *ours, form),
        Contender("naive", "multipart", *naive, form),
        Contender("echo", "raw", *echo, put, is_migrating=False),
        Contender("ours", "raw", *ours, put),
    ]


@contextlib.contextmanager
def server(arguments: list[str], folder: Path, probe: str) -> Iterator[tuple[int, int]]:
    """Port and process id of a server, up and answering; it is stopped by its process id."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "TMPDIR": str(folder),
        "MIGRATE_CKPT_SCRATCH_FOLDER": str(folder),
        "MIGRATE_CKPT_MIGRATIONS_FOLDER": str(HERE / "migrations"),
    }
    command = [sys.executable, *(part.format(port=port) for part in arguments)]
    log_path = folder / f"{port}.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command, cwd=HERE.parent, env=environment, stdout=log, stderr=log
        )
    try:
        wait_until_up(process, f"http://127.0.0.1:{port}{probe}", log_path)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait(timeout=30)


def wait_until_up(process: subprocess.Popen[bytes], url: str, log_path: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            urllib.request.urlopen(url, timeout=5).close()
            return
        time.sleep(0.1)
    raise SystemExit(f"{url} did not come up:\n{log_path.read_text()}")


def measure(contenders: list[Contender], folder: Path, size: int, rounds: int) -> None:
    """Print one table: a line per contender."""
    source, target = folder / "old.ckpt", folder / "new.ckpt"
    checkpoints.make(source, "large", size)
    peaks = [peak_and_check(contender, source, target) for contender in contenders]
    seconds: list[list[float]] = [[] for _ in contenders]
    for _ in range(rounds):
        for contender, times in zip(contenders, seconds, strict=True):
            times.append(contender.ask(source, target))
            target.unlink()
    print_table(contenders, seconds, peaks, source.stat().st_size)
    source.unlink()


def peak_and_check(contender: Contender, source: Path, target: Path) -> int:
    with Peak(contender.pid) as peak:
        contender.ask(source, target)
    if contender.is_migrating:
        checkpoints.check(source, target, "default")
    target.unlink()
    return peak.bytes


def print_table(
    contenders: list[Contender], seconds: list[list[float]], peaks: list[int], size: int
) -> None:
    keys = [(contender.name, contender.way) for contender in contenders]
    medians = dict(zip(keys, map(statistics.median, seconds), strict=True))
    naive = medians["naive", "multipart"]
    print(f"\n### A checkpoint of {size / 1e6:,.0f} MB\n")
    print("| service | sent as | seconds | of echo | of naive | memory of all processes |")
    print("|---|---|---|---|---|---|")
    for contender, times, peak in zip(contenders, seconds, peaks, strict=True):
        median = medians[contender.name, contender.way]
        print(
            f"| {contender.name} | {contender.way} "
            f"| {median:.3f} ({min(times):.3f} to {max(times):.3f}) "
            f"| {median / medians['echo', contender.way]:.2f} | {median / naive:.2f} "
            f"| {peak / 1e6:,.0f} MB |"
        )

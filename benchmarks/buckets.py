"""Measure a job from bucket to bucket beside two others, in one run, on an S3 server of its own (SeaweedFS).

    make bench BENCH="buckets --sizes 1GB --rounds 3"

Each round asks every contender once, one after the other. Memory is taken in a round of its own, of all
processes but the server's. `bucket_peers.py` says what `naive` and `copy` are.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import checkpoints
import obstore
from memory import Peak
from service import server

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))

from tests.acceptance.seaweed import Bucket, running_seaweed  # noqa: E402


class Peer:
    """One of `bucket_peers.py`, in a process of its own each time."""

    def __init__(self, kind: str, bucket: Bucket) -> None:
        self.name = kind
        self.is_migrating = kind != "copy"
        self._bucket = bucket

    def ask(self, source: str, target: str) -> float:
        """Seconds that it took."""
        done = subprocess.run(
            self._command(source, target), check=True, capture_output=True, text=True
        )
        return float(done.stdout)

    def peak_bytes(self, source: str, target: str) -> int:
        command = self._command(source, target)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        with process, Peak(process.pid) as peak:
            process.wait()
        return peak.bytes

    def _command(self, source: str, target: str) -> list[str]:
        script = str(HERE / "bucket_peers.py")
        return [sys.executable, script, self.name, self._bucket.name, source, target]


class Ours:
    """A job of a service that runs, with a set of its migrations."""

    is_migrating = True

    def __init__(self, name: str, set_name: str, bucket: Bucket, port: int, pid: int) -> None:
        self.name = name
        self._set_name = set_name
        self._place = f"s3://{bucket.name}"
        self._port = port
        self._pid = pid

    def ask(self, source: str, target: str) -> float:
        """Seconds from the order to the end of the job, as its client sees it."""
        order = {
            "source": f"{self._place}/{source}",
            "destination": f"{self._place}/{target}",
            "overwrite": True,
            "set": self._set_name,
        }
        begun = time.perf_counter()
        document = call(self._port, "/jobs", order)
        while document["ended"] is None:
            document = call(self._port, document["url"], prefer="wait=60")
        seconds = time.perf_counter() - begun
        if document["status"] != "succeeded":
            raise SystemExit(f"the job failed: {document['problem']}")
        return seconds

    def peak_bytes(self, source: str, target: str) -> int:
        with Peak(self._pid) as peak:
            self.ask(source, target)
        return peak.bytes


Contender = Peer | Ours


def measure_all(options: argparse.Namespace, folder: Path) -> None:
    (folder / "seaweed").mkdir()
    (folder / "data").mkdir()
    with contextlib.ExitStack() as stack:
        bucket = stack.enter_context(running_seaweed(folder / "seaweed"))
        os.environ |= bucket.environment | {
            "MIGRATE_CKPT_DATA_FOLDER": str(folder / "data"),
            "MIGRATE_CKPT_ALLOWED_SOURCES": f"s3://{bucket.name}",
            "MIGRATE_CKPT_ALLOWED_DESTINATIONS": f"s3://{bucket.name}",
            "TMPDIR": str(folder),
        }
        port, pid = stack.enter_context(server(["-m", "app", "serve"], folder, "/readyz"))
        contenders = [
            Peer("copy", bucket),
            Ours("by reference", "by_reference", bucket, port, pid),
            Ours("ours", "default", bucket, port, pid),
            Peer("naive", bucket),
        ]
        for size in options.sizes:
            measure(contenders, bucket, folder, size, options.rounds)


def call(port: int, path: str, body: Any = None, *, prefer: str = "") -> Any:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "Prefer": prefer},
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)


def measure(
    contenders: list[Contender], bucket: Bucket, folder: Path, size: int, rounds: int
) -> None:
    """Print one table: a line per contender."""
    source = folder / "old.ckpt"
    checkpoints.make(source, "large", size)
    store = bucket.store()
    with source.open("rb") as file:
        obstore.put(store, "old.ckpt", file)
    peaks = [peak_and_check(contender, store, source) for contender in contenders]
    seconds: list[list[float]] = [[] for _ in contenders]
    for _ in range(rounds):
        for contender, times in zip(contenders, seconds, strict=True):
            times.append(contender.ask("old.ckpt", "new.ckpt"))
            obstore.delete(store, "new.ckpt")
    print_table(contenders, seconds, peaks, source.stat().st_size)
    source.unlink()


def peak_and_check(contender: Contender, store: Any, source: Path) -> int:
    peak = contender.peak_bytes("old.ckpt", "new.ckpt")
    if contender.is_migrating:
        target = source.with_name("new.ckpt")
        target.write_bytes(obstore.get(store, "new.ckpt").bytes())
        checkpoints.check(source, target, "default")
        target.unlink()
    obstore.delete(store, "new.ckpt")
    return peak


def print_table(
    contenders: list[Contender], seconds: list[list[float]], peaks: list[int], size: int
) -> None:
    medians = [statistics.median(times) for times in seconds]
    print(f"\n### A checkpoint of {size / 1e6:,.0f} MB from bucket to bucket\n")
    print("| contender | seconds | of copy | memory of all processes |")
    print("|---|---|---|---|")
    for contender, times, median, peak in zip(contenders, seconds, medians, peaks, strict=True):
        print(
            f"| {contender.name} | {median:.2f} ({min(times):.2f} to {max(times):.2f}) "
            f"| {median / medians[0]:.2f} | {peak / 1e6:,.0f} MB |"
        )

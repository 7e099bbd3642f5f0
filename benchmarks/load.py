"""Put a service under load: clients in parallel for a while, and every answer looked at.

    make bench BENCH="load --seconds 120 --clients 8"

The checkpoints are small and large, good, broken and hostile. A good one must come back with its new
names and every other byte as it was, a bad one with the problem that fits; a server error, or memory
that grows, ends with an error. Everything stays on the loopback, and ends after the time that is given.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import io
import itertools
import json
import os
import pickle
import statistics
import struct
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import checkpoints
from memory import held_bytes, process_tree
from service import server

SMALL_BYTES, LARGE_BYTES = 10**6, 200 * 10**6
ANSWER_SECONDS = 300
SAMPLE_SECONDS = 1.0
BLOCK_BYTES = 1 << 20
# What the allocator keeps of one busy second and not of another.
ALLOWED_GROWTH_BYTES = 64 * 10**6


@dataclass(frozen=True)
class Case:
    """One kind of request: the file that is sent, and what must come back.

    Attributes:
        digest: The SHA-256 of the answer, where it is a checkpoint.
        error_type: Where it is a problem.
        weight: How often it is sent in a round of all of them.
    """

    name: str
    path: Path
    weight: int
    digest: str = ""
    error_type: str = ""


@dataclass
class Tally:
    """What the clients saw."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    wrong: Counter[str] = field(default_factory=Counter)
    busy: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, case: Case, seconds: float, mistake: str) -> None:
        with self.lock:
            self.seconds.setdefault(case.name, []).append(seconds)
            if mistake:
                self.wrong[f"{case.name}: {mistake}"] += 1

    @property
    def count(self) -> int:
        return sum(map(len, self.seconds.values()))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--large", type=int, default=LARGE_BYTES, help="bytes of a large one")


def measure_all(options: argparse.Namespace, folder: Path) -> None:
    with server(["-m", "app", "serve"], folder, "/readyz") as (port, pid):
        cases = make_cases(folder, options.large, port)
        # The first answers make what stays: threads, caches, the allocator's arenas.
        send_all(cases, port, options.clients, min(options.seconds, 10), Tally())
        tally, samples = Tally(), Samples(pid)
        with samples:
            begun = time.monotonic()
            send_all(cases, port, options.clients, options.seconds, tally)
            seconds = time.monotonic() - begun
        print_tables(tally, samples, seconds)
        growth = samples.growth
    refuse(tally, growth)


def make_cases(folder: Path, large_bytes: int, port: int) -> list[Case]:
    """Make the files, and learn what the good ones become: it is checked once, tensor by tensor."""
    cases = []
    for name, size, weight in (("1 MB", SMALL_BYTES, 24), ("large", large_bytes, 1)):
        old, new = folder / f"{name}.ckpt", folder / f"{name}.new"
        checkpoints.make(old, "large", size)
        status, digest, _ = send(old, port, save_as=new)
        if status != 200:
            raise SystemExit(f"{name}: answered with {status}")
        checkpoints.check(old, new, "default")
        new.unlink()
        cases.append(Case(name, old, weight, digest=digest))
    small = (folder / "1 MB.ckpt").read_bytes()
    bad = {
        "broken: cut short": (small[: len(small) // 2], "not_a_checkpoint"),
        "broken: no checkpoint": (b"not a checkpoint" * 1000, "not_a_checkpoint"),
        "broken: a flipped byte": (flipped(small), "not_a_checkpoint"),
        # What is no mapping, or of a foreign class, is for the first migration to look at; this one cannot.
        "hostile: a list in itself": (hostile(b"\x80\x02]q\x00h\x00a."), "migration_failed"),
        "hostile: no pickle": (hostile(b"\x80\x02\xff\xff."), "not_a_checkpoint"),
        "hostile: memo of 4 GiB": (
            hostile(b"\x80\x02]r" + struct.pack("<I", 2**32 - 1) + b"."),
            "",
        ),
        "hostile: calls os.system": (hostile(pickle.dumps(Evil(), 2)), "migration_failed"),
    }
    for name, (data, error_type) in bad.items():
        path = folder / f"{len(cases)}.ckpt"
        path.write_bytes(data)
        cases.append(Case(name, path, 2, error_type=error_type))
    return cases


class Evil:
    """Whoever unpickles it runs a command; nobody here does."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("exit 1",)


def hostile(data: bytes) -> bytes:
    """A torch zip around a pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
    return file.getvalue()


def flipped(data: bytes) -> bytes:
    """One bit of a tensor is another, and its checksum is not."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def send_all(cases: list[Case], port: int, clients: int, seconds: float, tally: Tally) -> None:
    """Have so many clients send for so long, each beginning elsewhere in the round."""
    round_of_cases = [case for case in cases for _ in range(case.weight)]
    deadline = time.monotonic() + seconds

    def be_client(number: int) -> None:
        begin = number * len(round_of_cases) // clients
        for case in itertools.islice(itertools.cycle(round_of_cases), begin, None):
            if time.monotonic() > deadline:
                return
            ask(case, port, tally)

    threads = [threading.Thread(target=be_client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def ask(case: Case, port: int, tally: Tally) -> None:
    begun = time.monotonic()
    try:
        status, digest, body = send(case.path, port)
    except OSError as error:
        tally.note(case, time.monotonic() - begun, f"no answer: {error!r}")
        return
    seconds = time.monotonic() - begun
    error_type = json.loads(body)["error_type"] if status != 200 else ""
    if error_type == "queue_full":
        with tally.lock:
            tally.busy += 1
        time.sleep(1)
        return
    is_right = (
        (status == 200, digest) == (True, case.digest)
        if case.digest
        else (400 <= status < 500 and error_type in (case.error_type or error_type))
    )
    mistake = "" if is_right else f"{status} {error_type or 'with another body'}"
    tally.note(case, seconds, mistake)


def send(path: Path, port: int, save_as: Path | None = None) -> tuple[int, str, bytes]:
    """Status, digest of the body, and the body itself where it is a problem."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
    try:
        with path.open("rb") as file:
            headers = {"Content-Length": str(path.stat().st_size)}
            connection.request("PUT", "/migrate/old.ckpt", file, headers)
        answer = connection.getresponse()
        digest, kept = hashlib.sha256(), b""
        blocks = iter(lambda: answer.read(BLOCK_BYTES), b"")
        if answer.status != 200:
            kept = b"".join(blocks)
        for block in [kept] if kept else blocks:
            digest.update(block)
            if save_as is not None:
                with save_as.open("ab") as file:
                    file.write(block)
        return answer.status, digest.hexdigest(), kept
    finally:
        connection.close()


class Samples:
    """What all processes of the service hold, once a second."""

    def __init__(self, pid: int) -> None:
        self.totals: list[int] = []
        self.of_web: list[int] = []
        self._pid = pid
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> Samples:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._is_over.set()
        self._thread.join()

    @property
    def growth(self) -> int:
        """By how much more the web process holds in the last third than in the first."""
        third = max(len(self.of_web) // 3, 1)
        return int(statistics.median(self.of_web[-third:]) - statistics.median(self.of_web[:third]))

    def _sample(self) -> None:
        is_over = False
        while not is_over:
            self.totals.append(sum(map(held_bytes, process_tree(self._pid))))
            self.of_web.append(held_bytes(self._pid))
            is_over = self._is_over.wait(SAMPLE_SECONDS)


def print_tables(tally: Tally, samples: Samples, seconds: float) -> None:
    print("\n| request | count | p50 seconds | p95 seconds | wrong |")
    print("|---|---|---|---|---|")
    for name, times in tally.seconds.items():
        wrong = sum(count for what, count in tally.wrong.items() if what.startswith(f"{name}:"))
        p50, p95 = percentile(times, 50), percentile(times, 95)
        print(f"| {name} | {len(times)} | {p50:.3f} | {p95:.3f} | {wrong} |")
    print("\n| of all | |")
    print("|---|---|")
    for name, value in rows(tally, samples, seconds):
        print(f"| {name} | {value} |")


def rows(tally: Tally, samples: Samples, seconds: float) -> Iterator[tuple[str, str]]:
    yield "requests per second", f"{tally.count / seconds:.1f}"
    yield "sent away because the queue was full", str(tally.busy)
    yield "memory of all processes, the most", f"{max(samples.totals) / 1e6:,.0f} MB"
    yield "memory of the web process, the most", f"{max(samples.of_web) / 1e6:,.0f} MB"
    yield "its growth from the first third to the last", f"{samples.growth / 1e6:,.1f} MB"


def percentile(values: list[float], percent: int) -> float:
    return sorted(values)[min(len(values) * percent // 100, len(values) - 1)]


def refuse(tally: Tally, growth: int) -> None:
    """Raises SystemExit where an answer was wrong, or memory grew."""
    if tally.wrong:
        raise SystemExit(f"wrong answers: {dict(tally.wrong)}")
    if growth > ALLOWED_GROWTH_BYTES:
        raise SystemExit(f"the web process holds {growth} bytes more at the end")

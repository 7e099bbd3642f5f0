"""A thousand runs, a hundred of them ended in four ways: then everything is as it was in the beginning."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.acceptance.conftest import (
    MEMORY_BYTES,
    Service,
    children,
    eventually,
    leave_during_run,
    running_service,
    write_sets,
)

pytestmark = pytest.mark.acceptance

RUNS = 1000
# Of each hundred runs so many end otherwise than well.
EACH = {"sleeps": 1, "eats": 2, "crashes": 4, "hangs up": 3}
CLIENTS = 4
WARM_UP_RUNS = 40
# What allocators may keep; a leak of four kilobytes a run would be as much.
SLACK_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Holdings:
    """What two processes have of the machine."""

    descriptors: tuple[int, ...]
    children: tuple[int, ...]
    scratch: frozenset[str]

    @classmethod
    def of(cls, service: Service) -> Holdings:
        pids = (service.pid, service.fork_server())
        return cls(
            tuple(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids),
            tuple(len(children(pid)) for pid in pids),
            frozenset(path.name for path in service.scratch.glob("migrate-ckpt-*/*")),
        )


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def own_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("a process without memory")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    write_sets(tmp_path / "migrations")
    with running_service(
        tmp_path,
        MIGRATE_CKPT_RUN_TIMEOUT_SECONDS="3",
        MIGRATE_CKPT_RUN_MEMORY_BYTES=str(MEMORY_BYTES),
        MIGRATE_CKPT_MAX_CONCURRENT_RUNS="2",
    ) as service:
        yield service


def send_all(service: Service, old: Path, kinds: list[str]) -> Counter[str]:
    """Send a request of each kind, some at once, and count what came of them."""
    body = old.read_bytes()

    def send(part: list[str]) -> Counter[str]:
        outcomes: Counter[str] = Counter()
        with httpx.Client(timeout=60) as client:
            for kind in part:
                if kind == "hangs up":
                    leave_during_run(service, old)
                    outcomes[kind] += 1
                    continue
                answer = client.post(f"{service.url}/migrate?set={kind}", content=body)
                is_good = answer.status_code == 200
                outcomes["done" if is_good else answer.json()["error_type"]] += 1
        return outcomes

    parts = [kinds[start::CLIENTS] for start in range(CLIENTS)]
    with ThreadPoolExecutor(CLIENTS) as threads:
        return sum(threads.map(send, parts), Counter())


def test_nothing_is_left_of_a_thousand_runs(service: Service, old: Path) -> None:
    hundreds = RUNS // 100
    ends = [kind for kind, count in EACH.items() for _ in range(count * hundreds)]
    kinds = [*ends, *["default"] * (RUNS - len(ends))]
    random.Random(5).shuffle(kinds)
    send_all(service, old, [*["default"] * (WARM_UP_RUNS - 4), *EACH])
    assert eventually(lambda: service.is_idle() and not service.scratch_folders())
    pids = (service.pid, service.fork_server())
    before = Holdings.of(service)
    bytes_before = [own_bytes(pid) for pid in pids]

    outcomes = send_all(service, old, kinds)

    assert outcomes == {
        "done": RUNS - len(ends),
        "timeout": EACH["sleeps"] * hundreds,
        "out_of_memory": EACH["eats"] * hundreds,
        "crashed": EACH["crashes"] * hundreds,
        "hangs up": EACH["hangs up"] * hundreds,
    }
    assert eventually(lambda: Holdings.of(service) == before), (before, Holdings.of(service))
    assert (service.pid, service.fork_server()) == pids
    # Python's pool for work that would block grows slowly, and to so many.
    assert threads(service.pid) <= 1 + min(32, (os.cpu_count() or 1) + 4)
    assert threads(service.fork_server()) == 1
    grown = [own_bytes(pid) - was for pid, was in zip(pids, bytes_before, strict=True)]
    assert max(grown) < SLACK_BYTES, grown

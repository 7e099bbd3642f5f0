from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.watched_processes import (
    MAX_PROCESSES,
    MAX_SCRATCH_ENTRIES,
    family,
    held_bytes,
    held_share_bytes,
    scratch_bytes,
)

MEBIBYTE = 2**20

TREE = r"""
import os, sys, time
for _ in range(int(sys.argv[1])):
    if os.fork():
        break
os.write(1, f"{os.getpid()}\n".encode())
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds 40 MiB of its own, 30 MiB shared, and reads 20 MiB of a file that it maps."""
    (tmp_path / "mapped").write_bytes(bytes(20 * MEBIBYTE))
    code = (
        "import mmap, sys, time\n"
        f"own = bytearray(b'x') * (40 * {MEBIBYTE})\n"
        f"shared = mmap.mmap(-1, 30 * {MEBIBYTE}); shared.write(b'x' * len(shared))\n"
        "file = open('mapped', 'r+b'); mapped = mmap.mmap(file.fileno(), 0); sum(mapped[::4096])\n"
        "print('ready', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("measure", [held_bytes, held_share_bytes])
def test_own_and_shared_memory_is_held_and_the_pages_of_a_file_are_not(
    holder: subprocess.Popen[str], measure: object
) -> None:
    held = measure(holder.pid)  # type: ignore[operator]

    assert 70 * MEBIBYTE <= held < 88 * MEBIBYTE


def test_process_that_has_gone_holds_nothing_and_has_no_children() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()

    assert held_bytes(process.pid) == held_share_bytes(process.pid) == 0
    assert family(process.pid) == {process.pid}


def test_family_is_counted_to_the_last_descendant() -> None:
    process = subprocess.Popen([sys.executable, "-c", TREE, "3"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        pids = {int(process.stdout.readline()) for _ in range(4)}

        assert family(process.pid) == pids
        assert len(pids) <= MAX_PROCESSES
    finally:
        for pid in family(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.communicate()


def test_scratch_counts_files_at_any_depth(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(b"x" * MEBIBYTE)

    written = scratch_bytes(tmp_path, set())

    assert written is not None
    assert MEBIBYTE <= written < 2 * MEBIBYTE


def test_scratch_counts_a_file_without_a_name_once(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file, (tmp_path / "file").open("rb"):
        file.write(b"x" * MEBIBYTE)
        file.flush()
        (tmp_path / "file").unlink()

        written = scratch_bytes(tmp_path, {os.getpid()})

    assert written is not None
    assert MEBIBYTE <= written < 2 * MEBIBYTE


def test_scratch_of_too_many_files_is_not_counted(tmp_path: Path) -> None:
    for number in range(MAX_SCRATCH_ENTRIES + 1):
        (tmp_path / str(number)).touch()

    assert scratch_bytes(tmp_path, set()) is None


def test_scratch_that_has_gone_holds_nothing(tmp_path: Path) -> None:
    assert scratch_bytes(tmp_path / "gone", {os.getpid()}) == 0

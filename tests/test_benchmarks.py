"""The benchmark measures what it says, and still runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
BENCHMARKS = REPOSITORY / "benchmarks"
MEGABYTE = 10**6

# Holds its memory in a grandchild of the process that is looked at, until its input is closed.
HOLDER = """
import subprocess, sys
if sys.argv[1:] == ["child"]:
    held = bytes(range(256)) * (100_000_000 // 256)
    print("held", flush=True)
    sys.stdin.read()
else:
    subprocess.run([sys.executable, __file__, "child"])
"""


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import memory

    return memory


def test_peak_counts_the_memory_of_descendants(memory, tmp_path: Path) -> None:
    script = tmp_path / "holder.py"
    script.write_text(HOLDER)

    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        held = sum(map(memory.held_bytes, memory.process_tree(process.pid)))
        process.communicate()

    assert 100 * MEGABYTE <= held < 150 * MEGABYTE


def test_pages_of_files_are_not_counted(memory, tmp_path: Path) -> None:
    path = tmp_path / "mapped"
    path.write_bytes(bytes(100 * MEGABYTE))
    code = (
        "import mmap, sys\n"
        "file = open(sys.argv[1], 'rb')\n"
        "held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)\n"
        "sum(held[::4096])\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )

    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        held = memory.held_bytes(process.pid)
        process.communicate()

    assert 0 < held < 50 * MEGABYTE


def test_process_that_has_ended_holds_nothing(memory) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()

    assert memory.held_bytes(process.pid) == 0


@pytest.mark.acceptance
def test_benchmark_compares_all_three_services() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/service.py", "--sizes", "1MB", "--rounds", "1"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert done.returncode == 0, done.stderr
    lines = [line.split("|")[1:3] for line in done.stdout.splitlines() if line.startswith("| ")]
    names = [(name.strip(), way.strip()) for name, way in lines[1:]]
    assert names == [
        ("echo", "multipart"),
        ("ours", "multipart"),
        ("naive", "multipart"),
        ("echo", "raw"),
        ("ours", "raw"),
    ]

"""The benchmarks measure what they say, and still run."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

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


@pytest.fixture(autouse=True)
def importable_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def memory() -> ModuleType:
    return importlib.import_module("memory")


@pytest.fixture
def library() -> ModuleType:
    return importlib.import_module("library")


@pytest.fixture
def contenders() -> ModuleType:
    return importlib.import_module("contenders")


@pytest.fixture
def checkpoints() -> ModuleType:
    return importlib.import_module("checkpoints")


def run_benchmarks(*arguments: str) -> list[list[str]]:
    """The cells of the table that is printed, without its header."""
    done = subprocess.run(
        [sys.executable, "benchmarks", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[1:]]


def test_peak_counts_the_memory_of_descendants(memory: ModuleType, tmp_path: Path) -> None:
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


def test_pages_of_files_are_not_counted(memory: ModuleType, tmp_path: Path) -> None:
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


def test_process_that_has_ended_holds_nothing(memory: ModuleType) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()

    assert memory.held_bytes(process.pid) == 0


@pytest.mark.parametrize("case_name", ["file", "tensors", "entries", "memory"])
def test_every_contender_of_a_case_makes_the_checkpoint_it_should(
    case_name: str,
    library: ModuleType,
    contenders: ModuleType,
    checkpoints: ModuleType,
    tmp_path: Path,
) -> None:
    case = library.CASES[case_name]
    old = tmp_path / "old.ckpt"
    checkpoints.save(old, case.kind, MEGABYTE if case.kind == "large" else 100)

    for name in case.labels.keys() - {"copy_file"}:
        new = tmp_path / f"{name}.ckpt"
        list(contenders.CONTENDERS[name](old, new, case.set_name))
        checkpoints.compare(old, new, case.set_name)


def test_limit_is_a_copy_of_the_file(contenders: ModuleType, tmp_path: Path) -> None:
    old, new = tmp_path / "old.ckpt", tmp_path / "new.ckpt"
    old.write_bytes(b"any bytes")

    list(contenders.copy_file(old, new, "default"))

    assert new.read_bytes() == b"any bytes"


@pytest.mark.parametrize(
    ("values", "name"),
    [([1, 2], "model.layers.{}.weight"), ([1, 3], "layers.{}.weight"), ([1], "layers.{}.weight")],
    ids=["old names", "another value", "a value less"],
)
def test_result_that_is_wrong_is_noticed(
    values: list[int], name: str, checkpoints: ModuleType, tmp_path: Path
) -> None:
    old, new = tmp_path / "old.ckpt", tmp_path / "new.ckpt"
    save_values(old, [1, 2], "model.layers.{}.weight")
    save_values(new, values, name)

    with pytest.raises(AssertionError):
        checkpoints.compare(old, new, "default")


def save_values(path: Path, values: list[int], name: str) -> None:
    weights = {name.format(i): torch.tensor(value) for i, value in enumerate(values)}
    torch.save({"state_dict": weights, "epoch": 3}, path)


def test_every_contender_is_in_a_case(library: ModuleType, contenders: ModuleType) -> None:
    measured = {name for case in library.CASES.values() for name in case.labels}

    assert measured == set(contenders.CONTENDERS)


def test_contender_that_fails_is_no_result(library: ModuleType, tmp_path: Path) -> None:
    runner = library.Runner(library.CASES["file"], tmp_path / "missing", tmp_path / "new.ckpt")

    with pytest.raises(subprocess.CalledProcessError):
        runner.time("copy_file")


@pytest.mark.acceptance
def test_benchmark_of_the_library_compares_all_contenders_of_a_case() -> None:
    lines = run_benchmarks("library", "--cases", "memory", "--sizes", "1MB", "--rounds", "1")

    assert [line[0] for line in lines] == ["ours", "a deep copy per migration"]


@pytest.mark.acceptance
def test_benchmark_of_drafting_compares_all_contenders() -> None:
    lines = run_benchmarks("draft", "--sizes", "1MB", "--rounds", "1")

    assert [line[0] for line in lines] == [
        "ours",
        "SHA-256 of both",
        "`torch.load` of both, no more",
    ]


@pytest.mark.acceptance
def test_benchmark_of_the_service_compares_all_three() -> None:
    lines = run_benchmarks("service", "--sizes", "1MB", "--rounds", "1")

    assert [line[:2] for line in lines] == [
        ["echo", "multipart"],
        ["ours", "multipart"],
        ["naive", "multipart"],
        ["echo", "raw"],
        ["ours", "raw"],
    ]


@pytest.mark.acceptance
def test_every_answer_under_load_is_right_and_memory_stays_flat() -> None:
    lines = run_benchmarks("load", "--seconds", "5", "--clients", "4", "--large", "20000000")

    counts = {line[0]: int(line[1]) for line in lines if len(line) == 5 and line[1].isdecimal()}
    assert counts["1 MB"] > 0
    assert {name.partition(":")[0] for name in counts} == {"1 MB", "large", "broken", "hostile"}
    assert [line[4] for line in lines if line[0] in counts] == ["0"] * len(counts)

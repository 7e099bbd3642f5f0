"""A file that is there in part is migrated from what it takes, to the same bytes as the whole one."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from migrate_ckpt import (
    BytesNeeded,
    MigrationFailed,
    Range,
    RequirementsNotMet,
    UnreadableCheckpoint,
    migrate_file,
    read_set,
    run_file,
)
from migrate_ckpt.formats.partial_source import PartialSource, merge

COUNT, LENGTH = 24, 100_000
WHOLE = COUNT * LENGTH * 4


class Remote:
    """A file elsewhere, of which ranges are fetched into a file here until a run has all that it needs."""

    def __init__(self, path: Path, local: Path) -> None:
        self.path, self.local = path, local
        self.fetched: list[tuple[int, int]] = []
        self.rounds = 0
        with local.open("wb") as file:
            file.truncate(path.stat().st_size)

    def run(self, folder: Path, target: Path, **options: Any) -> Any:
        while True:
            self.rounds += 1
            assert self.rounds < 12
            try:
                with run_file(
                    self.local, read_set(folder), present=self.fetched, **options
                ) as done:
                    self._assemble(done.pieces, target)
                    return done.verify()
            except BytesNeeded as error:
                for offset, count in error.ranges:
                    self.fetch(offset, count)

    def fetch(self, offset: int, count: int) -> None:
        assert not PartialSource(self.local, self.fetched).has(offset, count)
        with self.path.open("rb") as remote, self.local.open("r+b") as file:
            remote.seek(offset)
            file.seek(offset)
            file.write(remote.read(count))
        self.fetched.append((offset, count))

    @property
    def fetched_bytes(self) -> int:
        return sum(count for _, count in merge(self.fetched, joined_bytes=0))

    def _assemble(self, pieces: Any, target: Path) -> None:
        data = self.path.read_bytes()
        parts = [
            data[p.offset : p.offset + p.count] if isinstance(p, Range) else bytes(p)
            for p in pieces
        ]
        target.write_bytes(b"".join(parts))


def state_dict() -> OrderedDict[str, torch.Tensor]:
    return OrderedDict(
        (f"layers.{i}.w", torch.arange(float(LENGTH)).reshape(100, -1) + i) for i in range(COUNT)
    )


@pytest.fixture
def old(tmp_path: Path) -> Path:
    model = torch.nn.ParameterDict({k.replace(".", "_"): v for k, v in state_dict().items()})
    optimizer = torch.optim.Adam(model.values())
    for number, parameter in enumerate(model.values()):
        optimizer.state[parameter] = {
            "step": torch.tensor(3.0),
            "exp_avg": torch.full_like(parameter, number),
            "exp_avg_sq": torch.full_like(parameter, -number),
        }
    path = tmp_path / "old.ckpt"
    torch.save({"state_dict": state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}, path)
    return path


def declared(*calls: str) -> dict[str, str]:
    verbs = sorted({call.partition("(")[0] for call in calls})
    text = f"from migrate_ckpt.operations import {', '.join(verbs)}\noperations = [{', '.join(calls)}]\n"
    return {"0001_x.py": text}


RENAME = 'rename("layers.{i}.{n}", "blocks.{i}.{n}")'
SPLIT = 'split("layers.3.w", ["layers.3.a", "layers.3.b"])'
CASES = {
    # What is renamed costs no tensor; what is split, itself and its two moments.
    "renamed": ([RENAME], 0),
    "one split": ([SPLIT], 3),
    "split and renamed": ([SPLIT, RENAME], 3),
    "split and joined": ([SPLIT, 'concat(["layers.3.a", "layers.3.b"], "layers.3.c")'], 3),
    "dropped": (['drop("layers.0.w")'], 0),
    "one like another": (['add("z", 1.0, like="layers.0.w")'], 0),
    "a copy": (['add("z", copy_of="layers.0.w")'], 1),
    "one cast": (['cast("bfloat16", keys="layers.0.w")'], 1),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_only_what_operations_read_is_fetched(
    case: tuple[list[str], int], old: Path, tmp_path: Path, write_folder: Any
) -> None:
    calls, tensors = case
    files = declared(*calls)
    if "add" in str(calls) or "drop" in str(calls):
        files["0001_x.py"] += "from migrate_ckpt.operations import follow\n"
        files["0001_x.py"] += 'optimizer = follow(states="keep")\n'
    folder = write_folder(files)
    report = migrate_file(old, tmp_path / "whole.ckpt", folder=folder)
    remote = Remote(old, tmp_path / "part")

    in_part = remote.run(folder, tmp_path / "new.ckpt")

    assert (tmp_path / "new.ckpt").read_bytes() == (tmp_path / "whole.ckpt").read_bytes()
    assert in_part.to_dict() | {"bytes_verified": True} == report.to_dict()
    assert in_part.bytes_verified is False
    # Around each record there is a header and, before it, a descriptor.
    metadata = 4 * COUNT * 2 * 4096 + 200_000
    assert tensors * LENGTH * 4 <= remote.fetched_bytes < tensors * LENGTH * 4 + metadata
    assert remote.fetched_bytes < 3 * WHOLE / 2


def test_untouched_file_is_read_for_its_history_only(
    old: Path, tmp_path: Path, write_folder: Any
) -> None:
    folder = write_folder(declared(RENAME))
    migrate_file(old, old, folder=folder)
    remote = Remote(old, tmp_path / "part")

    report = remote.run(folder, tmp_path / "new.ckpt")

    assert report.ran == ()
    assert (tmp_path / "new.ckpt").read_bytes() == old.read_bytes()
    assert remote.fetched_bytes < WHOLE / 4


def test_safetensors_is_migrated_in_part(tmp_path: Path, write_folder: Any) -> None:
    old = tmp_path / "old.safetensors"
    pytest.importorskip("safetensors.torch").save_file(state_dict(), old)
    folder = write_folder(declared(SPLIT, RENAME))
    migrate_file(old, tmp_path / "whole", folder=folder)
    remote = Remote(old, tmp_path / "part")

    remote.run(folder, tmp_path / "new")

    assert (tmp_path / "new").read_bytes() == (tmp_path / "whole").read_bytes()
    assert LENGTH * 4 <= remote.fetched_bytes < LENGTH * 4 + 100_000


@pytest.mark.parametrize(
    ("files", "options"),
    [
        ({"0001_x.py": "def handle(ckpt):\n    return ckpt\n"}, {}),
        (declared(RENAME), {"format": "safetensors"}),
    ],
    ids=["a function", "another format"],
)
def test_what_may_read_anything_has_all_of_the_file(
    files: dict[str, str], options: Any, old: Path, tmp_path: Path, write_folder: Any
) -> None:
    if options:
        torch.save(state_dict(), old)
    folder = write_folder(files)
    migrate_file(old, tmp_path / "whole", folder=folder, **options)
    remote = Remote(old, tmp_path / "part")

    report = remote.run(folder, tmp_path / "new", **options)

    assert (tmp_path / "new").read_bytes() == (tmp_path / "whole").read_bytes()
    assert remote.fetched_bytes == old.stat().st_size
    assert report.bytes_verified is True


def test_stream_of_before_1_6_is_fetched_whole(tmp_path: Path, write_folder: Any) -> None:
    old = tmp_path / "old.pt"
    torch.save(state_dict(), old, _use_new_zipfile_serialization=False)
    folder = write_folder(declared(RENAME))
    migrate_file(old, tmp_path / "whole", folder=folder)
    remote = Remote(old, tmp_path / "part")

    remote.run(folder, tmp_path / "new")

    assert (tmp_path / "new").read_bytes() == (tmp_path / "whole").read_bytes()


def test_operation_of_ones_own_that_reads_has_the_bytes(
    old: Path, tmp_path: Path, write_folder: Any
) -> None:
    form = """from dataclasses import dataclass
from migrate_ckpt.operations import Operation, follow
@dataclass(frozen=True)
class Double(Operation):
    def __call__(self, ckpt):
        weights = ckpt["state_dict"]
        weights["layers.0.w"] = weights["layers.0.w"] * 2
        return ckpt
    def inverse(self, ckpt):
        return ()
operations = [Double()]
optimizer = follow(states="keep")
"""
    folder = write_folder({"0001_x.py": form})
    migrate_file(old, tmp_path / "whole", folder=folder)
    remote = Remote(old, tmp_path / "part")

    remote.run(folder, tmp_path / "new")

    assert (tmp_path / "new").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize(
    ("form", "error"),
    [
        (declared('rename("no", "b")')["0001_x.py"], MigrationFailed),
        (
            "from migrate_ckpt.operations import requires_key\nrequires = requires_key('no')\n"
            + declared(RENAME)["0001_x.py"],
            RequirementsNotMet,
        ),
    ],
    ids=["a failure", "a requirement"],
)
def test_what_fails_on_the_whole_file_fails(
    form: str, error: type[Exception], old: Path, tmp_path: Path, write_folder: Any
) -> None:
    with pytest.raises(error):
        Remote(old, tmp_path / "part").run(write_folder({"0001_x.py": form}), tmp_path / "new")


def test_damage_in_what_is_fetched_is_found(old: Path, tmp_path: Path, write_folder: Any) -> None:
    data = bytearray(old.read_bytes())
    place = data.index(torch.tensor([5.0, 6.0, 7.0]).numpy().tobytes())
    data[place] ^= 1
    old.write_bytes(data)

    folder = write_folder(declared('split("layers.0.w", ["a", "b"])'))
    remote = Remote(old, tmp_path / "part")

    with pytest.raises(UnreadableCheckpoint, match="damaged"):
        remote.run(folder, tmp_path / "new")


def test_range_that_was_not_fetched_is_never_read_as_zeros(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    with PartialSource(path, [(10, 5), (15, 5), (40, 10)]) as source:
        assert source.read(12, 8) == bytes(range(12, 20))
        assert source.has(40, 10)
        assert not source.has(39, 2)
        with pytest.raises(BytesNeeded) as needed:
            source.read(18, 4)
    assert needed.value.ranges == ((0, 100),)


def test_ranges_that_are_near_each_other_are_one() -> None:
    assert merge([(50, 10), (0, 10), (12, 3)], joined_bytes=2) == [(0, 15), (50, 10)]

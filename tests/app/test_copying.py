"""Bytes from open files to a new one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.copying import copy_extents
from app.responses import Extent


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large"
    path.write_bytes(os.urandom(1_000_000))
    return path


def test_extents_stand_one_after_the_other_and_are_told_of(large: Path, tmp_path: Path) -> None:
    told: list[int] = []

    with large.open("rb") as file:
        extents = [Extent(file.fileno(), 100, 300_000), Extent(file.fileno(), 7, 10)]
        copy_extents(extents, tmp_path / "new", told.append)

    data = large.read_bytes()
    assert (tmp_path / "new").read_bytes() == data[100:300_100] + data[7:17]
    assert told == [300_000, 300_010]


@pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="the system cannot copy by itself")
def test_the_kernel_copies_in_steps_that_begin_where_pages_do(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    copy_file_range = os.copy_file_range

    def copy(source: int, target: int, count: int, *, offset_src: int) -> int:
        steps.append(os.lseek(target, 0, os.SEEK_CUR))
        return copy_file_range(source, target, count, offset_src=offset_src)

    monkeypatch.setattr(os, "copy_file_range", copy)

    with large.open("rb") as file:
        extents = [Extent(file.fileno(), 0, 100), Extent(file.fileno(), 100, 300_000)]
        copy_extents(extents, tmp_path / "new", lambda count: None)

    assert steps == [0, 100, 2**16]


def test_a_file_that_is_shorter_than_its_extent_says_is_an_error(
    large: Path, tmp_path: Path
) -> None:
    with large.open("rb") as file:
        extents = [Extent(file.fileno(), 0, 1_000_100)]
        with pytest.raises(EOFError, match="100 bytes are missing"):
            copy_extents(extents, tmp_path / "new", lambda count: None)

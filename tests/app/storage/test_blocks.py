"""A file that is written block by block is there when it is whole, and not before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.errors import ServiceError
from app.storage.blocks import write_blocks


async def blocks(*, is_cut: bool = False) -> AsyncIterator[bytes]:
    yield b"ab"
    if is_cut:
        raise ServiceError("source_unavailable", "It was cut.", retryable=True)
    yield b"c"


def write(target: Path, *, is_cut: bool = False, max_bytes: int = 10) -> None:
    writing = write_blocks(blocks(is_cut=is_cut), target, max_bytes=max_bytes, tell=lambda _: None)
    asyncio.run(writing)


def test_whole_file_is_there_under_its_name(tmp_path: Path) -> None:
    write(tmp_path / "upload")
    write(tmp_path / "upload")

    assert [path.name for path in tmp_path.iterdir()] == ["upload"]
    assert (tmp_path / "upload").read_bytes() == b"abc"


def test_file_that_was_cut_does_not_pass_for_a_whole_one(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="It was cut"):
        write(tmp_path / "upload", is_cut=True)
    with pytest.raises(ServiceError, match="larger than"):
        write(tmp_path / "upload", max_bytes=2)

    assert not (tmp_path / "upload").exists()
    # The next attempt takes its place.
    write(tmp_path / "upload")
    assert (tmp_path / "upload").read_bytes() == b"abc"

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import pytest
import torch

from migrate_ckpt.formats.pieces import Pieces, Range, write_pieces
from migrate_ckpt.formats.source import FileSource
from migrate_ckpt.formats.zip_reader import read_directory
from migrate_ckpt.formats.zip_writer import ALIGNMENT, PAGE_BYTES, ZipWriter


def materialise(pieces: Pieces, source: FileSource | None, path: Path) -> Path:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    write_pieces(pieces, source, descriptor)
    os.close(descriptor)
    return path


def test_a_zip_of_new_records_is_the_one_torch_writes(tmp_path):
    saved = io.BytesIO()
    torch.save({"a": torch.arange(5.0), "empty": torch.empty(0), "b": torch.arange(3)}, saved)
    with zipfile.ZipFile(saved) as theirs:
        records = [(name, theirs.read(name)) for name in theirs.namelist()]

    writer = ZipWriter()
    for name, data in records:
        writer.add(name, data)

    ours = materialise(writer.finish(), None, tmp_path / "ours").read_bytes()
    assert ours == saved.getvalue()


def test_records_that_follow_each_other_are_kept_as_one_range(save, tmp_path):
    with FileSource(save({str(i): torch.full((100,), i) for i in range(50)})) as source:
        entries = list(read_directory(source).values())
        stored = [entry for entry in entries if "/data/" in entry.name]
        writer = ZipWriter()
        writer.add("old/data.pkl", b"new" * 100)
        writer.keep(stored)

        pieces = writer.finish()

        ranges = [piece for piece in pieces if isinstance(piece, Range)]
        assert len(ranges) == 1
        assert ranges[0].count == stored[-1].end - stored[0].data_offset
        with zipfile.ZipFile(materialise(pieces, source, tmp_path / "new")) as written:
            assert written.testzip() is None


def test_kept_bytes_stay_at_a_multiple_of_the_alignment(save, tmp_path):
    path = save({str(i): torch.full((i,), i) for i in range(1, 20)})
    with FileSource(path) as source:
        stored = [entry for name, entry in read_directory(source).items() if "/data/" in name]
        writer = ZipWriter()
        writer.add("old/data.pkl", b"x" * 1001)
        writer.keep(entry for index, entry in enumerate(stored) if index % 3)

        new = materialise(writer.finish(), source, tmp_path / "new")

    with FileSource(new) as source:
        offsets = [entry.data_offset for entry in read_directory(source).values()]
    assert all(offset % ALIGNMENT == 0 for offset in offsets)


def test_a_large_run_moves_by_whole_pages(save, tmp_path):
    with FileSource(save({str(i): torch.full((100_000,), i) for i in range(10)})) as source:
        stored = [entry for name, entry in read_directory(source).items() if "/data/" in name]
        writer = ZipWriter()
        writer.add("old/data.pkl", b"x" * 1001)
        writer.keep(stored)

        new = materialise(writer.finish(), source, tmp_path / "new")

    with FileSource(new) as written:
        entries = read_directory(written)
    assert {
        (entries[entry.name].data_offset - entry.data_offset) % PAGE_BYTES for entry in stored
    } == {0}


def test_the_crc_of_a_kept_record_comes_from_the_source(save, tmp_path):
    path = save({"w": torch.arange(1000)})
    damaged = bytearray(path.read_bytes())
    with FileSource(path) as source:
        entry = next(
            entry for name, entry in read_directory(source).items() if name.endswith("data/0")
        )
    damaged[entry.data_offset + 5] ^= 0xFF
    path.write_bytes(damaged)

    with FileSource(path) as source:
        writer = ZipWriter()
        writer.keep([entry])
        new = materialise(writer.finish(), source, tmp_path / "new")

    with zipfile.ZipFile(new) as written:
        assert written.testzip() == entry.name


@pytest.mark.parametrize(
    "size", [(1 << 32) - 1, 1 << 32, (1 << 32) + 5], ids=["just-below", "at", "above"]
)
def test_records_around_four_gibibytes_are_found_again(tmp_path, size):
    sparse = tmp_path / "source"
    with sparse.open("wb") as file:
        file.truncate(size)
    source = FileSource(sparse)
    writer = ZipWriter()
    writer._pieces.add_range(0, 0)
    header, data = writer._add_header("archive/data/0", size, phase=0)
    writer._pieces.add_range(0, size)
    writer._add_descriptor(header, 0, size)
    writer._note("archive/data/0", header, data, size, 0, 0x0808)
    writer.add("archive/data/1", b"after")

    written = SparsePieces(writer.finish())

    entries = read_directory(written)
    assert entries["archive/data/0"].size == size
    last = entries["archive/data/1"]
    assert written.read(last.data_offset, last.size) == b"after"
    source.close()


class SparsePieces:
    """A source that answers from pieces whose ranges are all zero, so that no large file is needed."""

    def __init__(self, pieces: Pieces) -> None:
        self.size = pieces.size
        self._parts = []
        offset = 0
        for piece in pieces:
            count = piece.count if isinstance(piece, Range) else len(piece)
            self._parts.append((offset, count, None if isinstance(piece, Range) else bytes(piece)))
            offset += count

    def read_ahead(self, offset: int, count: int, most: int) -> bytes:
        return self.read(offset, most)

    def require(self, ranges: object) -> None:
        pass

    def read(self, offset: int, count: int) -> bytes:
        found = bytearray()
        for start, length, data in self._parts:
            low, high = max(start, offset), min(start + length, offset + count)
            if low < high:
                found += bytes(high - low) if data is None else data[low - start : high - start]
        return bytes(found)

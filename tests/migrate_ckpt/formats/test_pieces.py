from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from migrate_ckpt.formats.pieces import KERNEL_STEP, Pieces, Range, replace_file, whole
from migrate_ckpt.formats.source import FileSource, sha256_of


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source"
    path.write_bytes(bytes(range(256)) * 100)
    with FileSource(path) as opened:
        yield opened


def test_ranges_that_follow_each_other_become_one():
    pieces = Pieces()

    pieces.add_range(10, 5)
    pieces.add_range(15, 5)
    pieces.add_range(30, 5)

    assert list(pieces) == [Range(10, 10), Range(30, 5)]
    assert (pieces.size, pieces.copied_bytes) == (15, 15)


def test_small_new_bytes_become_one_piece():
    pieces = Pieces()

    for index in range(10):
        pieces.add_bytes(bytes([index]))

    assert [bytes(piece) for piece in pieces] == [bytes(range(10))]


def test_a_large_view_is_kept_and_not_copied():
    pieces = Pieces()
    data = bytearray(2 << 20)

    pieces.add_bytes(memoryview(data))

    data[0] = 7
    assert next(iter(pieces))[0] == 7


@pytest.mark.parametrize(
    "refusal", [None, errno.EXDEV, errno.ENOSYS], ids=["by the kernel", "across", "not at all"]
)
def test_pieces_are_written_in_order(source, tmp_path, monkeypatch, refusal):
    if refusal:

        def refuse(*arguments: object) -> int:
            raise OSError(refusal, os.strerror(refusal))

        monkeypatch.setattr(os, "copy_file_range", refuse)
    pieces = Pieces()
    pieces.add_range(100, 10)
    pieces.add_bytes(b"between")
    pieces.add_range(0, 25_000)

    replace_file(tmp_path / "target", pieces, source)

    content = source.path.read_bytes()
    assert (tmp_path / "target").read_bytes() == content[100:110] + b"between" + content[:25_000]


@pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="the system cannot copy by itself")
@pytest.mark.parametrize("most", [None, 70_000])
def test_the_kernel_copies_in_steps_that_begin_where_pages_do(tmp_path, monkeypatch, most):
    data = os.urandom(1_000_000)
    (tmp_path / "large").write_bytes(data)
    steps = []
    copy_file_range = os.copy_file_range

    def copy(source: int, target: int, count: int, offset: int) -> int:
        steps.append(os.lseek(target, 0, os.SEEK_CUR))
        return copy_file_range(source, target, min(count, most or count), offset)

    monkeypatch.setattr(os, "copy_file_range", copy)
    pieces = Pieces()
    pieces.add_bytes(b"x" * 100)
    pieces.add_range(100, 900_000)
    pieces.add_bytes(b"y" * 100)
    pieces.add_range(7, 10)

    with FileSource(tmp_path / "large") as source:
        replace_file(tmp_path / "target", pieces, source)

    assert steps[:2] == [100, KERNEL_STEP]
    assert most or len(steps) == 3
    written = (tmp_path / "target").read_bytes()
    assert written == b"x" * 100 + data[100:900_100] + b"y" * 100 + data[7:17]


def test_a_source_that_ends_early_leaves_no_target(source, tmp_path):
    pieces = whole(source)
    os.truncate(source.path, 100)

    with pytest.raises(OSError, match="ended"):
        replace_file(tmp_path / "target", pieces, source)

    assert os.listdir(tmp_path) == ["source"]


def test_an_error_while_copying_is_not_swallowed(source, tmp_path, monkeypatch):
    def fail(*arguments: object) -> int:
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(os, "copy_file_range", fail)

    with pytest.raises(OSError, match="broken disk"):
        replace_file(tmp_path / "target", whole(source), source)


def test_a_source_stays_readable_when_its_file_is_replaced(source):
    before = sha256_of(source)
    Path(source.path).unlink()

    assert sha256_of(source) == before

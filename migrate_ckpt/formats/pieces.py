"""A file that is not there yet, as a list of pieces: new bytes, and ranges of the source it is made from.

What no migration touched is a range. It is never decoded and never passes through Python: a file takes it by
`copy_file_range`, a response by large reads, a bucket by a part copy.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from migrate_ckpt.formats.source import BLOCK_BYTES, FileSource, Source


@dataclass(frozen=True, slots=True)
class Range:
    """`count` bytes of the source from `offset` on."""

    offset: int
    count: int


KERNEL_STEP = 1 << 16
"""What the kernel copies in one step, the 16 pages of a pipe. Where these begin elsewhere than at a multiple in the
target, each ends amid a page, pages stay small, and copy and flush take a third longer (Linux 6.18, ext4)."""

_AT_ONCE = 1 << 30

NewBytes: TypeAlias = bytes | memoryview
Piece: TypeAlias = NewBytes | Range

_NO_COPY_FILE_RANGE = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)


class Pieces:
    """The pieces of one file, in order. Ranges that follow each other become one, as do small new bytes."""

    def __init__(self) -> None:
        self._pieces: list[Piece | bytearray] = []
        self.size = 0

    def add_bytes(self, data: NewBytes) -> None:
        """Append new bytes. A long memoryview is kept as it is and must stay valid until the pieces are written."""
        count = len(data)
        if not count:
            return
        last = self._pieces[-1] if self._pieces else None
        if count > BLOCK_BYTES:
            self._pieces.append(data)
        elif isinstance(last, bytearray) and len(last) + count <= BLOCK_BYTES:
            last += data
        else:
            self._pieces.append(bytearray(data))
        self.size += count

    def add_range(self, offset: int, count: int) -> None:
        """Append a range of the source."""
        if not count:
            return
        last = self._pieces[-1] if self._pieces else None
        if isinstance(last, Range) and last.offset + last.count == offset:
            self._pieces[-1] = Range(last.offset, last.count + count)
        else:
            self._pieces.append(Range(offset, count))
        self.size += count

    def __iter__(self) -> Iterator[Piece]:
        for piece in self._pieces:
            yield memoryview(piece) if isinstance(piece, bytearray) else piece

    def __len__(self) -> int:
        return len(self._pieces)

    @property
    def copied_bytes(self) -> int:
        """How many bytes are ranges of the source."""
        return sum(piece.count for piece in self._pieces if isinstance(piece, Range))


def whole(source: Source) -> Pieces:
    """The source itself, unchanged."""
    pieces = Pieces()
    pieces.add_range(0, source.size)
    return pieces


def write_pieces(pieces: Pieces, source: FileSource | None, descriptor: int) -> None:
    """Write the pieces to an open file, from its current position on.

    Raises:
        OSError: The disk is full, or the source cannot be read.
    """
    for piece in pieces:
        if isinstance(piece, Range):
            assert source is not None, "a range needs the source it is a range of"
            copy_range(source, piece, descriptor)
        else:
            _write_all(descriptor, piece)


def copy_range(source: FileSource, piece: Range, descriptor: int) -> None:
    """Write a range of a source to an open file, by the kernel where it can.

    Raises:
        OSError: The disk is full, or the source cannot be read or is shorter.
    """
    offset, left = source.start + piece.offset, piece.count
    position = os.lseek(descriptor, 0, os.SEEK_CUR)
    while left:
        # A little first, so that the kernel's own steps begin where its pages in the target do.
        most = -position % KERNEL_STEP or _AT_ONCE
        count = _copy_some(source.fileno(), descriptor, min(left, most), offset)
        if not count:
            raise OSError(f"the source ended {left} bytes early")
        offset, position, left = offset + count, position + count, left - count


def _copy_some(source: int, target: int, count: int, offset: int) -> int:
    if hasattr(os, "copy_file_range"):
        try:
            return os.copy_file_range(source, target, count, offset)
        except OSError as error:
            # Across file systems, and on some network ones, the kernel cannot do it: then by hand.
            if error.errno not in _NO_COPY_FILE_RANGE:
                raise
    data = os.pread(source, min(count, 4 * BLOCK_BYTES), offset)
    _write_all(target, data)
    return len(data)


def _write_all(descriptor: int, data: NewBytes) -> None:
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(descriptor, view[:_AT_ONCE]) :]


def replace_file(
    target: Path,
    pieces: Pieces,
    source: FileSource | None,
    *,
    before_rename: Callable[[], object] | None = None,
    follow_links: bool = True,
) -> None:
    """Write the pieces beside the target, flush, rename: the target is what it was, or whole.

    `before_rename` is called when all is written; what it raises leaves the target as it was. Of a target that is a
    link what it leads to is replaced, or the link itself where links are not to be followed.

    Raises:
        OSError: It cannot be written; then nothing is left behind.
    """

    def write(descriptor: int) -> None:
        write_pieces(pieces, source, descriptor)

    replace_file_by(target, write, before_rename=before_rename, follow_links=follow_links)


def replace_file_by(
    target: Path,
    write: Callable[[int], None],
    *,
    before_rename: Callable[[], object] | None = None,
    follow_links: bool = True,
) -> None:
    """Do the same with whatever writes to an open file."""
    if follow_links:
        target = Path(os.path.realpath(target))
    beside = target.with_name(f".{target.name[:200]}.{secrets.token_hex(8)}.tmp")
    keeps_mode = target.exists() and not target.is_symlink()
    mode = target.stat().st_mode & 0o7777 if keeps_mode else None
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        try:
            write(descriptor)
            if mode is not None:
                os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if before_rename is not None:
            before_rename()
        os.replace(beside, target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    _flush_folder(target.parent)


def _flush_folder(folder: Path) -> None:
    """Make the new name durable, too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

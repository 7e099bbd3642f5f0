"""A file of which only some ranges are there: what is asked of it beyond those is noted, to be fetched.

So a checkpoint in a bucket need not be fetched whole to be migrated: reading it tells which of its bytes that takes.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterable
from dataclasses import dataclass

from migrate_ckpt.formats.source import ByteRange, FileSource

# Ranges with less between them are fetched as one: a request costs more than these bytes.
JOINED_BYTES = 1 << 16
# What is fetched is rounded to this, so that ranges do not become many small ones.
ROUNDED_BYTES = 1 << 12


class BytesNeeded(Exception):
    """Ranges of a file must be there that are not.

    Attributes:
        ranges: Offset and count of each, in bytes, in their order.
    """

    def __init__(self, ranges: Iterable[ByteRange]) -> None:
        self.ranges = tuple(ranges)
        super().__init__(
            f"{sum(count for _, count in self.ranges)} more bytes of the file are needed"
        )


class PartialSource(FileSource):
    """A file of the size that the whole one has, with the bytes of some ranges in it."""

    def __init__(self, path: str | os.PathLike[str] | int, present: Iterable[ByteRange]) -> None:
        super().__init__(path)
        self._present = merge(present, joined_bytes=0)
        self._starts = [start for start, _ in self._present]
        self._needed: list[ByteRange] = []

    def has(self, offset: int, count: int) -> bool:
        """Tell whether a range is there, as far as the file goes."""
        end = min(offset + count, self.size)
        if end <= offset:
            return True
        position = bisect.bisect_right(self._starts, offset) - 1
        if position < 0:
            return False
        start, length = self._present[position]
        return end <= start + length

    def read(self, offset: int, count: int) -> bytes:
        """Read a range.

        Raises:
            BytesNeeded: It is not there.
        """
        self.require([(offset, count)])
        return super().read(offset, count)

    def read_ahead(self, offset: int, count: int, most: int) -> bytes:
        """Read at least so many bytes, and no more than are there in one piece.

        Raises:
            BytesNeeded: They are not there.
        """
        while most > count and not self.has(offset, most):
            most //= 2
        return self.read(offset, max(count, most))

    def require(self, ranges: Iterable[ByteRange]) -> None:
        for offset, count in ranges:
            self.note(offset, count)
        self.refuse_needed()

    def note(self, offset: int, count: int) -> None:
        """Note that a range will be needed, if it is not there."""
        if not self.has(offset, count):
            self._needed.append((offset, count))

    def refuse_needed(self) -> None:
        """Let nothing go on for which bytes are missing.

        Raises:
            BytesNeeded: There were some noted.
        """
        if self._needed:
            raise BytesNeeded(self._rounded(self._needed))

    def whole_needed(self) -> BytesNeeded:
        """Return what says that all of the file must be there."""
        return BytesNeeded([(0, self.size)])

    def _rounded(self, ranges: Iterable[ByteRange]) -> list[ByteRange]:
        rounded = []
        for offset, count in ranges:
            start = offset - offset % ROUNDED_BYTES
            end = min(-(-(offset + count) // ROUNDED_BYTES) * ROUNDED_BYTES, self.size)
            rounded.append((start, end - start))
        return merge(rounded, joined_bytes=JOINED_BYTES)


def open_partial(path: str | os.PathLike[str] | int, present: Iterable[ByteRange]) -> FileSource:
    """Open a file of which these ranges are there; where that is all of it, as any other file."""
    source = PartialSource(path, present)
    if not source.has(0, source.size):
        return source
    source.close()
    return FileSource(path)


@dataclass(frozen=True, slots=True)
class AbsentRange:
    """A range of a source that was not there when it was looked at."""

    source: PartialSource
    offset: int
    count: int

    def note(self) -> None:
        self.source.note(self.offset, self.count)

    def refuse(self) -> None:
        self.source.require([(self.offset, self.count)])


def merge(ranges: Iterable[ByteRange], *, joined_bytes: int) -> list[ByteRange]:
    """Return ranges in their order, with those joined that have no more than so many bytes between them."""
    merged: list[tuple[int, int]] = []
    for offset, count in sorted(ranges):
        end = offset + count
        if merged and offset <= merged[-1][1] + joined_bytes:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((offset, end))
    return [(start, end - start) for start, end in merged]

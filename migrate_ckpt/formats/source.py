"""Where the bytes of a checkpoint come from: anything that has a size and can be read at an offset."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import zlib
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Protocol, TypeAlias

BLOCK_BYTES = 1 << 20

ByteRange: TypeAlias = tuple[int, int]
"""Offset and count, in bytes."""


class Source(Protocol):
    """Bytes that can be read at any offset. Offsets and counts are in bytes."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, count: int) -> bytes:
        """Exactly `count` bytes from `offset` on; fewer only at the end of the source."""
        ...

    def read_ahead(self, offset: int, count: int, most: int) -> bytes:
        """`count` bytes from `offset` on, and up to `most` where these are as easily had."""
        ...

    def require(self, ranges: Iterable[ByteRange]) -> None:
        """Say which ranges will be read, so that those that are not there can be fetched at once."""
        ...


class FileSource:
    """A local file, held open, so that the file may be renamed or replaced while it is read.

    It is opened by its path, or is open already, as a descriptor that stays its owner's.

    Attributes:
        path: Its path.
        size: Its bytes.
        start: Where in the file that is open it begins; only a slice begins elsewhere than at 0.
    """

    start = 0

    def __init__(self, path: str | os.PathLike[str] | int) -> None:
        self._descriptor = -1
        if isinstance(path, int):
            self.path = Path(f"/dev/fd/{path}")
            self._descriptor = os.dup(path)
        else:
            self.path = Path(path)
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        status = os.fstat(self._descriptor)
        if stat.S_ISDIR(status.st_mode):
            # It can be opened, and reading it would raise the same without the path.
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(self.path))
        self.size = status.st_size

    def fileno(self) -> int:
        return self._descriptor

    def read(self, offset: int, count: int) -> bytes:
        data = os.pread(self._descriptor, count, offset)
        while len(data) < count and (
            more := os.pread(self._descriptor, count - len(data), offset + len(data))
        ):
            data += more
        return data

    def read_ahead(self, offset: int, count: int, most: int) -> bytes:
        """Read at least so many bytes, and more for whoever goes on from there."""
        return self.read(offset, max(count, most))

    def require(self, ranges: Iterable[ByteRange]) -> None:
        """Do nothing: all of it is there."""

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        # A copy would close the descriptor of the original, and then whatever is opened under its number.
        raise TypeError("an open file is not copied")

    def __enter__(self) -> FileSource:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Slice(FileSource):
    """A range of a file, as a file of its own: one in a tar, for example."""

    def __init__(self, whole: FileSource, start: int, size: int) -> None:
        super().__init__(whole.fileno())
        self.path = whole.path
        self.start = whole.start + start
        self.size = max(min(size, whole.size - start), 0)

    def read(self, offset: int, count: int) -> bytes:
        return super().read(self.start + offset, max(min(count, self.size - offset), 0))


def sha256_of(source: Source) -> str:
    """The SHA-256 of all bytes of a source, in hexadecimal."""
    digest = hashlib.sha256()
    update_digest(digest, source, 0, source.size)
    return digest.hexdigest()


def update_digest(digest: hashlib._Hash, source: Source, offset: int, count: int) -> None:
    """Let a digest take in a range of a source."""
    end = offset + count
    for start in range(offset, end, BLOCK_BYTES):
        digest.update(source.read(start, min(BLOCK_BYTES, end - start)))


def crc_of(source: Source, offset: int, count: int) -> int:
    """The CRC-32 of a range, as a zip records it."""
    crc, end = 0, offset + count
    for start in range(offset, end, BLOCK_BYTES):
        crc = zlib.crc32(source.read(start, min(BLOCK_BYTES, end - start)), crc)
    return crc

"""Where the files of a sharded checkpoint are: in a folder, or one after the other in a tar."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from migrate_ckpt.errors import UnreadableCheckpoint
from migrate_ckpt.formats.source import ByteRange, FileSource, Slice

MAX_MEMBERS = 10_000
MAX_NAME_CHARACTERS = 255
MAX_HEADER_BYTES = 1 << 16
MAX_HEADER_READS = 16
"""A file may have a name, a link and a pax header in front of its own, of two reads each."""
_MAGIC_OFFSET, _MAGIC = 257, b"ustar"


class Files(Protocol):
    """Files by their names, without a folder in front."""

    def sizes(self) -> Mapping[str, int]:
        """Return the files that there are, with their sizes in bytes."""
        ...

    def open(self, name: str) -> FileSource: ...


class FolderFiles:
    """Those in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def sizes(self) -> Mapping[str, int]:
        return {path.name: path.stat().st_size for path in self.folder.iterdir() if path.is_file()}

    def open(self, name: str) -> FileSource:
        return FileSource(self.folder / name)


class TarFiles:
    """Those in a tar, all in one folder of it; each is a range of the tar.

    Attributes:
        source: The tar.
        folder: What stands before the names in it.
    """

    def __init__(self, source: FileSource) -> None:
        """Read where they are.

        Raises:
            UnreadableCheckpoint: The tar is damaged, has files in several folders, or has more than plain files.
        """
        self.source = source
        self._ranges: dict[str, ByteRange] = {}
        folders = dict.fromkeys(self._read())
        if len(folders) > 1:
            raise UnreadableCheckpoint(
                f"the tar has files in several folders: {', '.join(map(repr, list(folders)[:3]))}"
            )
        self.folder = next(iter(folders), "")

    def _read(self) -> Iterator[str]:
        try:
            for count, member in enumerate(_members(_Reader(self.source))):
                if count == MAX_MEMBERS:
                    raise UnreadableCheckpoint("the tar has more files than any that is known")
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    raise UnreadableCheckpoint(
                        f"the tar has more than plain files: {member.name!r:.80}"
                    )
                folder, _, name = member.name.rpartition("/")
                if not name.isprintable() or len(name) > MAX_NAME_CHARACTERS:
                    raise UnreadableCheckpoint(
                        f"the tar has a name that no such checkpoint has: {name!r:.80}"
                    )
                if name in self._ranges:
                    raise UnreadableCheckpoint(f"the tar has {name!r:.80} twice")
                self._ranges[name] = member.offset_data, member.size
                yield folder
        except (tarfile.TarError, ValueError, OverflowError) as error:
            raise UnreadableCheckpoint(f"the tar is damaged: {error}") from error

    def sizes(self) -> Mapping[str, int]:
        return {name: size for name, (_, size) in self._ranges.items()}

    def range_of(self, name: str) -> ByteRange:
        """Return where in the tar a file is: its offset and size."""
        return self._ranges[name]

    def open(self, name: str) -> FileSource:
        return Slice(self.source, *self._ranges[name])


def is_tar(source: FileSource) -> bool:
    """Tell whether a file is a tar, by its magic (POSIX.1-1988, ustar)."""
    return source.read(_MAGIC_OFFSET, len(_MAGIC)) == _MAGIC


def read_whole(files: Files, name: str, max_bytes: int) -> bytes:
    """Return all of a file that is not longer than it may be.

    Raises:
        UnreadableCheckpoint: It is.
    """
    with files.open(name) as source:
        if source.size > max_bytes:
            raise UnreadableCheckpoint(f"{name} is longer than {max_bytes:,} bytes")
        return source.read(0, source.size)


def _members(reader: _Reader) -> Iterator[tarfile.TarInfo]:
    """Yield what a tar says of its files, with little of it in memory at a time."""
    with tarfile.open(fileobj=reader, mode="r:") as tar:
        while (member := tar.next()) is not None:
            # It would be kept with each file.
            if tar.pax_headers:
                raise tarfile.ReadError("it has a header for all files, which is not read here")
            if member.size < 0:
                raise tarfile.ReadError(f"{member.name!r:.80} has {member.size} bytes")
            yield member
            # It keeps all that it has read, which nobody asks it for.
            tar.members.clear()  # type: ignore[attr-defined]
            reader.reads = 0


class _Reader(io.RawIOBase):
    """A source as a file object, of which only headers are read.

    Attributes:
        reads: How often it was read from for the file that is looked at.
    """

    def __init__(self, source: FileSource) -> None:
        self.reads = 0
        self._source = source
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, count: int = -1, /) -> bytes:
        # Headers before that of a file are read from within each other: many are meant to exhaust the stack.
        self.reads += 1
        if self.reads > MAX_HEADER_READS:
            raise tarfile.ReadError("a file has more headers than any that is known")
        # A long one is meant to take memory.
        if not 0 <= count <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header has {count} bytes")
        data = self._source.read(self._position, count)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._source.size}
        self._position = start[whence] + offset
        return self._position

    def tell(self) -> int:
        return self._position

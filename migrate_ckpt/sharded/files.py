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
MAX_HEADER_BYTES = 1 << 20
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
            with tarfile.open(fileobj=_Reader(self.source), mode="r:") as tar:
                for count, member in enumerate(tar):
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


class _Reader(io.RawIOBase):
    """A source as a file object."""

    def __init__(self, source: FileSource) -> None:
        self._source = source
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, count: int = -1, /) -> bytes:
        # Only headers are read, and a long one is meant to take memory.
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

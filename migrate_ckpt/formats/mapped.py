"""A source mapped into memory, privately: what is read comes from the file, what is written stays in this process.

The pages are copied by the kernel when they are written to, so a tensor of any size costs memory only where a
migration changes it in place. Which pages those are, Linux says in `/proc/self/pagemap` (`Documentation/admin-guide/
mm/pagemap.rst`); elsewhere all bytes are compared.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator, Mapping
from functools import cached_property
from io import FileIO

from migrate_ckpt.formats.container import Stored
from migrate_ckpt.formats.source import BLOCK_BYTES, FileSource, Slice

# Without it the kernel may refuse to map more than the memory it has; Python's mmap names it from 3.13 on.
_MAP_NORESERVE = 0x4000 if sys.platform == "linux" else 0
_PAGEMAP_ENTRY_BYTES = 8
# The uppermost byte of an entry: bit 63 present, 62 swapped, 61 a page of the file. Own pages are there and not of it.
_OWN_PAGE = bytes(top & 0xC0 != 0 and top & 0x20 == 0 for top in range(256))


class MappedSource:
    """The whole of a source in memory, writable without touching it. Tensors made of it keep the memory.

    Attributes:
        source: The file, which may be a slice of another.
        memory: What is mapped; it may be of more than the source.
        shift: Where in the memory the source begins: the system maps from the beginnings of pages on only.
    """

    memory: mmap.mmap
    shift: int

    def __init__(self, source: FileSource) -> None:
        self.source = source
        if isinstance(source, Part):
            whole = source.file.mapped
            self.memory = whole.memory
            self.shift = whole.shift + source.start - whole.source.start
        else:
            self.shift = source.start % mmap.ALLOCATIONGRANULARITY
            self.memory = mmap.mmap(
                source.fileno(),
                source.size + self.shift if isinstance(source, Slice) else 0,
                flags=mmap.MAP_PRIVATE | _MAP_NORESERVE,
                prot=mmap.PROT_READ | mmap.PROT_WRITE,
                offset=source.start - self.shift,
            )

    def changed(self, storages: Mapping[str, Stored]) -> set[str]:
        """Keys of the storages whose bytes in memory are no longer those of the source."""
        pages = self._written_pages()
        return {
            key
            for key, stored in storages.items()
            if _touches(pages, stored, self.shift % mmap.PAGESIZE) and not self._is_same(stored)
        }

    def _is_same(self, stored: Stored) -> bool:
        view = memoryview(self.memory)
        for offset in range(stored.data_offset, stored.data_offset + stored.size, BLOCK_BYTES):
            count = min(BLOCK_BYTES, stored.data_offset + stored.size - offset)
            start = self.shift + offset
            if self.source.read(offset, count) != view[start : start + count].tobytes():
                return False
        return True

    def _written_pages(self) -> bytes | None:
        """One byte for each page, 1 where the process has a copy of its own; None where the system does not say."""
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.memory)) + self.shift
        first = start // mmap.PAGESIZE
        count = -(-(start % mmap.PAGESIZE + self.source.size) // mmap.PAGESIZE)
        try:
            with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
                pagemap.seek(first * _PAGEMAP_ENTRY_BYTES)
                return b"".join(_own_pages(pagemap, count))
        except OSError:
            return None


class MappedFile:
    """A file that is opened and mapped once for many parts of it, each of which is a container.

    Attributes:
        source: The file.
    """

    def __init__(self, source: FileSource) -> None:
        self.source = source

    @cached_property
    def mapped(self) -> MappedSource:
        return MappedSource(self.source)


class Part(Slice):
    """A range of such a file: it has neither a descriptor nor a mapping of its own, of which the system gives few.

    Attributes:
        file: The file.
    """

    def __init__(self, file: MappedFile, start: int, size: int) -> None:
        self._descriptor = -1
        whole = file.source
        self.file = file
        self.path = whole.path
        self.start = whole.start + start
        self.size = max(min(size, whole.size - start), 0)

    def fileno(self) -> int:
        return self.file.source.fileno()

    def read(self, offset: int, count: int) -> bytes:
        start = self.start - self.file.source.start
        return self.file.source.read(start + offset, max(min(count, self.size - offset), 0))


def _own_pages(pagemap: FileIO, count: int) -> Iterator[bytes]:
    while count:
        data = pagemap.read(min(count * _PAGEMAP_ENTRY_BYTES, 4 * BLOCK_BYTES))
        if not data:
            raise OSError("the page map ended early")
        yield data[7::_PAGEMAP_ENTRY_BYTES].translate(_OWN_PAGE)
        count -= len(data) // _PAGEMAP_ENTRY_BYTES


def _touches(pages: bytes | None, stored: Stored, shift: int) -> bool:
    if pages is None or not stored.size:
        return bool(stored.size)
    start = shift + stored.data_offset
    last = (start + stored.size - 1) // mmap.PAGESIZE
    return pages.find(1, start // mmap.PAGESIZE, last + 1) >= 0

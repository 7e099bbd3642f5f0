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
from io import FileIO

from migrate_ckpt.formats.container import Stored
from migrate_ckpt.formats.source import BLOCK_BYTES, FileSource, Slice

# Without it the kernel may refuse to map more than the memory it has; Python's mmap names it from 3.13 on.
_MAP_NORESERVE = 0x4000 if sys.platform == "linux" else 0
_PAGEMAP_ENTRY_BYTES = 8
# The uppermost byte of an entry: bit 63 present, 62 swapped, 61 a page of the file. Own pages are there and not of it.
_OWN_PAGE = bytes(top & 0xC0 != 0 and top & 0x20 == 0 for top in range(256))


class MappedSource(mmap.mmap):
    """The whole of a file, writable without touching it. Tensors made of it keep it alive.

    Attributes:
        source: The file, which may be a slice of another.
        shift: Where in what is mapped it begins: the system maps from the beginnings of pages on only.
    """

    source: FileSource
    shift: int

    def __new__(cls, source: FileSource) -> MappedSource:
        flags = mmap.MAP_PRIVATE | _MAP_NORESERVE
        shift = source.start % mmap.ALLOCATIONGRANULARITY
        length = source.size + shift if isinstance(source, Slice) else 0
        prot = mmap.PROT_READ | mmap.PROT_WRITE
        mapped = super().__new__(
            cls, source.fileno(), length, flags=flags, prot=prot, offset=source.start - shift
        )
        mapped.source = source
        mapped.shift = shift
        return mapped

    def changed(self, storages: Mapping[str, Stored]) -> set[str]:
        """Keys of the storages whose bytes in memory are no longer those of the source."""
        pages = self._written_pages()
        return {
            key
            for key, stored in storages.items()
            if _touches(pages, stored, self.shift) and not self._is_same(stored)
        }

    def _is_same(self, stored: Stored) -> bool:
        view = memoryview(self)
        for offset in range(stored.data_offset, stored.data_offset + stored.size, BLOCK_BYTES):
            count = min(BLOCK_BYTES, stored.data_offset + stored.size - offset)
            start = self.shift + offset
            if self.source.read(offset, count) != view[start : start + count].tobytes():
                return False
        return True

    def _written_pages(self) -> bytes | None:
        """One byte for each page, 1 where the process has a copy of its own; None where the system does not say."""
        first = ctypes.addressof(ctypes.c_char.from_buffer(self)) // mmap.PAGESIZE
        count = -(-len(self) // mmap.PAGESIZE)
        try:
            with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
                pagemap.seek(first * _PAGEMAP_ENTRY_BYTES)
                return b"".join(_own_pages(pagemap, count))
        except OSError:
            return None


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

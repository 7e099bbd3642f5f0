"""Reads the directory of a zip as torch writes it, and refuses whatever two readers could understand differently.

Stricter than the format (PKWARE APPNOTE 6.3.10) on purpose: torch finds records without regard to case and takes
one of two with the same name, `zipfile` takes another, and a file that shows each its own content is an attack.
So there is one directory at the very end, one entry for each stretch of bytes, and nothing in between.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter

from migrate_ckpt.errors import UnreadableCheckpoint
from migrate_ckpt.formats.source import Source
from migrate_ckpt.formats.zip_directory import CentralHeader, find_directory
from migrate_ckpt.formats.zip_layout import (
    DESCRIPTOR,
    DESCRIPTOR64,
    FLAG_DESCRIPTOR,
    FLAG_UTF8,
    LOCAL_HEADER,
    U32,
    Entry,
)

MAX_GAP_BYTES = 24
MAX_NAME_BYTES = 1000
WINDOW_BYTES = 1 << 16
# Around the beginning of a record: the descriptor of the one before, and its own header.
_BEFORE_BYTES = DESCRIPTOR64.size + MAX_GAP_BYTES
_HEADER_BYTES = LOCAL_HEADER.size + MAX_NAME_BYTES


def read_directory(source: Source) -> dict[str, Entry]:
    """The records by name, in file order.

    Raises:
        UnreadableCheckpoint: The zip is damaged, ambiguous, compressed, encrypted or carries anything unexpected.
        TooLarge: It has more entries than any checkpoint has.
    """
    start, headers = find_directory(source)
    _refuse_torchscript(header.name for header in headers)
    source.require(
        (max(0, header.header_offset - _BEFORE_BYTES), _BEFORE_BYTES + _HEADER_BYTES)
        for header in headers
    )
    window = _Window(source)
    entries: dict[str, Entry] = {}
    folded: set[str] = set()
    previous_end = 0
    for header in sorted(headers, key=attrgetter("header_offset")):
        name = header.name
        lower = name.lower()
        if lower in folded:
            raise UnreadableCheckpoint(
                f"two records of the zip are called {name!r} (case does not count)"
            )
        folded.add(lower)
        gap = header.header_offset - previous_end
        if not 0 <= gap <= MAX_GAP_BYTES:
            raise UnreadableCheckpoint(
                f"record {name!r} overlaps another one, or hides bytes before it"
            )
        entry = _read_entry(window, header, limit=start)
        previous_end = entry.end
        entries[name] = entry
    if not 0 <= start - previous_end <= MAX_GAP_BYTES:
        raise UnreadableCheckpoint("the zip has bytes between its last record and its directory")
    return entries


class _Window:
    """Reads ahead, so that the headers of many small records are not a read each."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._start = 0
        self._data = b""

    def at(self, offset: int, count: int) -> tuple[bytes, int]:
        """Bytes with the `count` from `offset` on in them, unless the source ends before, and where these begin."""
        start = offset - self._start
        if start < 0 or start + count > len(self._data):
            self._start, start = offset, 0
            self._data = self._source.read_ahead(offset, count, WINDOW_BYTES)
        return self._data, start


def _refuse_torchscript(names: Iterable[str]) -> None:
    for name in names:
        below_root = name.partition("/")[2]
        if below_root == "constants.pkl" or below_root.startswith("code/"):
            raise UnreadableCheckpoint(
                "this is a TorchScript archive, which is a program and no checkpoint: "
                "migrate the state dict it was made from"
            )


def _read_entry(window: _Window, header: CentralHeader, *, limit: int) -> Entry:
    """The entry after its local header was compared with the directory. `limit` is where the directory begins."""
    name = header.name
    if header.method or header.flags & ~(FLAG_DESCRIPTOR | FLAG_UTF8):
        raise UnreadableCheckpoint(
            f"record {name!r} is compressed or encrypted; torch stores records as they are"
        )
    data, start = window.at(header.header_offset, LOCAL_HEADER.size + MAX_NAME_BYTES)
    name_start = start + LOCAL_HEADER.size
    if len(data) < name_start:
        raise UnreadableCheckpoint(f"record {name!r} lies outside the file")
    mark, _, flags, method, _, _, crc, packed, size, name_length, extra_length = (
        LOCAL_HEADER.unpack_from(data, start)
    )
    if name_length > MAX_NAME_BYTES:
        raise UnreadableCheckpoint(f"a record has a name of {name_length} bytes: {name[:80]!r}")
    local_name = data[name_start : name_start + name_length]
    if mark != b"PK\3\4" or local_name != name.encode() or flags != header.flags or method:
        raise UnreadableCheckpoint(f"the two headers of record {name!r} contradict each other")
    has_descriptor = bool(flags & FLAG_DESCRIPTOR)
    if not (has_descriptor and crc == packed == size == 0) and not _same_sizes(
        header, crc, packed, size, has_descriptor
    ):
        raise UnreadableCheckpoint(f"the two headers of record {name!r} have different sizes")
    data_offset = header.header_offset + LOCAL_HEADER.size + name_length + extra_length
    end = data_offset + header.size
    if end > limit:
        raise UnreadableCheckpoint(f"record {name!r} lies outside the file")
    if has_descriptor:
        end += _descriptor_size(window, header, end, limit)
    return Entry(name, header.header_offset, data_offset, header.size, header.crc, flags, end)


def _same_sizes(
    header: CentralHeader, crc: int, packed: int, size: int, has_descriptor: bool
) -> bool:
    # A zip64 local header has the sizes in an extra field and the narrow ones full, or zero before a descriptor.
    wide = header.size >= U32 and size == packed == U32
    return (size == packed == header.size or wide) and (
        crc == header.crc or (has_descriptor and crc == 0)
    )


def _descriptor_size(window: _Window, header: CentralHeader, offset: int, limit: int) -> int:
    """Length of the data descriptor at `offset`; torch writes sizes of 8 bytes once an offset or size needs them."""
    data, start = window.at(offset, DESCRIPTOR64.size)
    for layout in (DESCRIPTOR, DESCRIPTOR64):
        if len(data) >= start + layout.size and offset + layout.size <= limit:
            mark, crc, packed, size = layout.unpack_from(data, start)
            if mark == b"PK\7\x08" and packed == size == header.size and crc == header.crc:
                return layout.size
    if header.size == 0:
        return 0
    raise UnreadableCheckpoint(
        f"the record {header.name!r} and what follows it contradict each other"
    )

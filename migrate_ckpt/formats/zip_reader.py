"""Reads the directory of a zip as torch writes it, and refuses whatever two readers could understand differently.

Stricter than the format (PKWARE APPNOTE 6.3.10) on purpose: torch finds records without regard to case and takes
one of two with the same name, `zipfile` takes another, and a file that shows each its own content is an attack.
So there is one directory at the very end, one entry for each stretch of bytes, and nothing in between.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from migrate_ckpt.errors import TooLarge, UnreadableCheckpoint
from migrate_ckpt.formats.source import Source

MAX_ENTRIES = 1_000_000
MAX_DIRECTORY_BYTES = 256 << 20
MAX_GAP_BYTES = 24
WINDOW_BYTES = 1 << 16

LOCAL_HEADER = struct.Struct("<4s5H3I2H")
CENTRAL_HEADER = struct.Struct("<4s6H3I5H2I")
END = struct.Struct("<4s4H2IH")
END64_LOCATOR = struct.Struct("<4sIQI")
END64 = struct.Struct("<4sQ2H2I4Q")
DESCRIPTOR = struct.Struct("<4sI2I")
DESCRIPTOR64 = struct.Struct("<4sI2Q")

FLAG_DESCRIPTOR = 0x0008
FLAG_UTF8 = 0x0800
U16, U32 = 0xFFFF, 0xFFFFFFFF


class Entry(NamedTuple):
    """One record: its name and where its bytes are. Offsets and sizes are in bytes of the source.

    `end` is where the next header may begin: after the record's data descriptor, when it has one.
    """

    name: str
    header_offset: int
    data_offset: int
    size: int
    crc: int
    flags: int
    end: int


def read_directory(source: Source) -> dict[str, Entry]:
    """The records by name, in file order.

    Raises:
        UnreadableCheckpoint: The zip is damaged, ambiguous, compressed, encrypted or carries anything unexpected.
        TooLarge: It has more entries than any checkpoint has.
    """
    start, count, end = _find_directory(source)
    entries: dict[str, Entry] = {}
    folded: set[str] = set()
    previous_end = 0
    directory = source.read(start, end - start)
    headers = list(_central_headers(directory, count))
    _refuse_torchscript(name for name, _ in headers)
    window = _Window(source)
    for name, fields in sorted(headers, key=lambda header: header[1].header_offset):
        if name.lower() in folded:
            raise UnreadableCheckpoint(
                f"two records of the zip are called {name!r} (case does not count)"
            )
        folded.add(name.lower())
        gap = fields.header_offset - previous_end
        if not 0 <= gap <= MAX_GAP_BYTES:
            raise UnreadableCheckpoint(
                f"record {name!r} overlaps another one, or hides bytes before it"
            )
        entry = _read_entry(window, name, fields, limit=start)
        previous_end = entry.end
        entries[name] = entry
    if not 0 <= start - previous_end <= MAX_GAP_BYTES:
        raise UnreadableCheckpoint("the zip has bytes between its last record and its directory")
    return entries


class _Fields(NamedTuple):
    """What the directory says of one record."""

    flags: int
    method: int
    crc: int
    size: int
    header_offset: int


class _Window:
    """Reads ahead, so that the headers of many small records are not a read each."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._start = 0
        self._data = b""

    def read(self, offset: int, count: int) -> bytes:
        start = offset - self._start
        if start < 0 or start + count > len(self._data):
            self._start, start = offset, 0
            self._data = self._source.read(offset, max(count, WINDOW_BYTES))
        return self._data[start : start + count]


def _refuse_torchscript(names: Iterable[str]) -> None:
    for name in names:
        below_root = name.partition("/")[2]
        if below_root == "constants.pkl" or below_root.startswith("code/"):
            raise UnreadableCheckpoint(
                "this is a TorchScript archive, which is a program and no checkpoint: "
                "migrate the state dict it was made from"
            )


def _find_directory(source: Source) -> tuple[int, int, int]:
    """Start of the directory, number of entries, end of the directory."""
    tail = source.read(max(0, source.size - END.size), END.size)
    if len(tail) < END.size or tail[:4] != b"PK\5\6":
        raise UnreadableCheckpoint(
            "the zip does not end with its directory: it is cut off, or something was appended to it"
        )
    _, disk, first_disk, here, count, size, start, comment = END.unpack(tail)
    end = source.size - END.size
    locator = source.read(max(0, end - END64_LOCATOR.size), END64_LOCATOR.size)
    if locator[:4] == b"PK\6\7":
        end, count64, size64, start64 = _find_directory64(source, locator, end - END64_LOCATOR.size)
        agreed = all(
            narrow in (wide, limit)
            for narrow, wide, limit in (
                (count, count64, U16),
                (size, size64, U32),
                (start, start64, U32),
            )
        )
        if not agreed:
            raise UnreadableCheckpoint("the two ends of the zip's directory contradict each other")
        here = count = count64
        size, start = size64, start64
    if disk or first_disk or here != count or comment or start + size != end:
        raise UnreadableCheckpoint("the end of the zip's directory is inconsistent")
    if count > MAX_ENTRIES or size > MAX_DIRECTORY_BYTES:
        raise TooLarge(
            f"the zip has {count} records in a directory of {size} bytes; "
            f"the limits are {MAX_ENTRIES} and {MAX_DIRECTORY_BYTES}"
        )
    return start, count, end


def _find_directory64(
    source: Source, locator: bytes, locator_offset: int
) -> tuple[int, int, int, int]:
    _, disk, offset, disks = END64_LOCATOR.unpack(locator)
    if disk or disks != 1 or offset + END64.size != locator_offset:
        raise UnreadableCheckpoint("the zip's 64-bit directory end is inconsistent")
    mark, length, _, _, disk, first_disk, here, count, size, start = END64.unpack(
        source.read(offset, END64.size)
    )
    if mark != b"PK\6\6" or length != END64.size - 12 or disk or first_disk or here != count:
        raise UnreadableCheckpoint("the zip's 64-bit directory end is inconsistent")
    return offset, count, size, start


def _central_headers(directory: bytes, count: int) -> Iterator[tuple[str, _Fields]]:
    position = 0
    for _ in range(count):
        if position + CENTRAL_HEADER.size > len(directory):
            raise UnreadableCheckpoint("the zip's directory is cut off")
        (
            mark,
            _,
            _,
            flags,
            method,
            _,
            _,
            crc,
            packed,
            size,
            name_length,
            extra_length,
            comment_length,
            disk,
            _,
            _,
            offset,
        ) = CENTRAL_HEADER.unpack_from(directory, position)
        position += CENTRAL_HEADER.size
        raw_name = directory[position : position + name_length]
        extra = directory[position + name_length : position + name_length + extra_length]
        position += name_length + extra_length
        if mark != b"PK\1\2" or position > len(directory) or comment_length or disk:
            raise UnreadableCheckpoint("the zip's directory is damaged")
        name = _check_name(raw_name)
        size, packed, offset = _widen(extra, size, packed, offset)
        if size != packed and not method:
            raise UnreadableCheckpoint(f"record {name!r} has two different sizes")
        yield name, _Fields(flags, method, crc, size, offset)
    if position != len(directory):
        raise UnreadableCheckpoint("the zip's directory has bytes after its last entry")


def _check_name(raw: bytes) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnreadableCheckpoint("a record of the zip has a name that is no text") from error
    parts = name.split("/")
    if (
        len(parts) < 2
        or not name.isprintable()
        or "\\" in name
        or any(part in ("", ".", "..") for part in parts)
    ):
        raise UnreadableCheckpoint(
            f"a record of the zip has a name that torch does not write: {name[:80]!r}"
        )
    return name


def _widen(extra: bytes, size: int, packed: int, offset: int) -> tuple[int, int, int]:
    """Size, packed size and header offset, taken from the zip64 extra field where the narrow ones are full."""
    needed = [value == U32 for value in (size, packed, offset)]
    if not any(needed):
        return size, packed, offset
    wide = _extra_field(extra, 1)
    if len(wide) < 8 * sum(needed):
        raise UnreadableCheckpoint("a zip64 field of the directory is missing")
    numbers = iter(struct.unpack_from(f"<{sum(needed)}Q", wide))
    size, packed, offset = (
        next(numbers) if full else value
        for full, value in zip(needed, (size, packed, offset), strict=True)
    )
    return size, packed, offset


def _extra_field(extra: bytes, wanted: int) -> bytes:
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        if kind == wanted:
            return extra[position + 4 : position + 4 + length]
        position += 4 + length
    return b""


def _read_entry(window: _Window, name: str, fields: _Fields, *, limit: int) -> Entry:
    """The entry after its local header was compared with the directory. `limit` is where the directory begins."""
    if fields.method or fields.flags & ~(FLAG_DESCRIPTOR | FLAG_UTF8):
        raise UnreadableCheckpoint(
            f"record {name!r} is compressed or encrypted; torch stores records as they are"
        )
    raw = window.read(fields.header_offset, LOCAL_HEADER.size + U16 // 64)
    if len(raw) < LOCAL_HEADER.size:
        raise UnreadableCheckpoint(f"record {name!r} lies outside the file")
    mark, _, flags, method, _, _, crc, packed, size, name_length, extra_length = (
        LOCAL_HEADER.unpack_from(raw)
    )
    local_name = raw[LOCAL_HEADER.size : LOCAL_HEADER.size + name_length]
    if mark != b"PK\3\4" or local_name != name.encode() or flags != fields.flags or method:
        raise UnreadableCheckpoint(f"the two headers of record {name!r} contradict each other")
    has_descriptor = bool(flags & FLAG_DESCRIPTOR)
    if not (has_descriptor and crc == packed == size == 0) and not _same_sizes(
        fields, crc, packed, size, has_descriptor
    ):
        raise UnreadableCheckpoint(f"the two headers of record {name!r} have different sizes")
    data_offset = fields.header_offset + LOCAL_HEADER.size + name_length + extra_length
    end = data_offset + fields.size
    if end > limit:
        raise UnreadableCheckpoint(f"record {name!r} lies outside the file")
    if has_descriptor:
        end += _descriptor_size(window, name, fields, end, limit)
    return Entry(name, fields.header_offset, data_offset, fields.size, fields.crc, flags, end)


def _same_sizes(fields: _Fields, crc: int, packed: int, size: int, has_descriptor: bool) -> bool:
    # A zip64 local header has the sizes in an extra field and the narrow ones full, or zero before a descriptor.
    wide = fields.size >= U32 and size == packed == U32
    return (size == packed == fields.size or wide) and (
        crc == fields.crc or (has_descriptor and crc == 0)
    )


def _descriptor_size(window: _Window, name: str, fields: _Fields, offset: int, limit: int) -> int:
    """Length of the data descriptor at `offset`; torch writes sizes of 8 bytes once an offset or size needs them."""
    raw = window.read(offset, 24)
    for layout in (DESCRIPTOR, DESCRIPTOR64):
        if len(raw) >= layout.size and offset + layout.size <= limit:
            mark, crc, packed, size = layout.unpack_from(raw)
            if mark == b"PK\7\x08" and packed == size == fields.size and crc == fields.crc:
                return layout.size
    if fields.size == 0:
        return 0
    raise UnreadableCheckpoint(f"the record {name!r} and what follows it contradict each other")

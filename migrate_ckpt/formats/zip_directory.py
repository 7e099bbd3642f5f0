"""Reads the directory at the end of a zip: what it says of each record, before the records are looked at."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from migrate_ckpt.errors import TooLarge, UnreadableCheckpoint
from migrate_ckpt.formats.source import Source
from migrate_ckpt.formats.zip_layout import CENTRAL_HEADER, END, END64, END64_LOCATOR, U16, U32

MAX_ENTRIES = 1_000_000
MAX_DIRECTORY_BYTES = 256 << 20

_NO_NAMES = frozenset(("", ".", ".."))
# Of most records; whatever else is a good name is looked at more closely.
_PLAIN_NAME = re.compile(rb"[A-Za-z0-9_]+/data/[0-9]+").fullmatch


class CentralHeader(NamedTuple):
    """What the directory says of one record."""

    name: str
    flags: int
    method: int
    crc: int
    size: int
    header_offset: int


def find_directory(source: Source) -> tuple[int, list[CentralHeader]]:
    """Where the directory begins, and what it says of each record, in its own order.

    Raises:
        UnreadableCheckpoint: It is damaged or ambiguous.
        TooLarge: It has more entries than any checkpoint has.
    """
    start, count, end = _find_end(source)
    return start, list(_central_headers(source.read(start, end - start), count))


def _find_end(source: Source) -> tuple[int, int, int]:
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
        end, count64, size64, start64 = _find_end64(source, locator, end - END64_LOCATOR.size)
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


def _find_end64(source: Source, locator: bytes, locator_offset: int) -> tuple[int, int, int, int]:
    _, disk, offset, disks = END64_LOCATOR.unpack(locator)
    if disk or disks != 1 or offset + END64.size != locator_offset:
        raise UnreadableCheckpoint("the zip's 64-bit directory end is inconsistent")
    mark, length, _, _, disk, first_disk, here, count, size, start = END64.unpack(
        source.read(offset, END64.size)
    )
    if mark != b"PK\6\6" or length != END64.size - 12 or disk or first_disk or here != count:
        raise UnreadableCheckpoint("the zip's 64-bit directory end is inconsistent")
    return offset, count, size, start


def _central_headers(directory: bytes, count: int) -> Iterator[CentralHeader]:
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
        name = raw_name.decode("ascii") if _PLAIN_NAME(raw_name) else _check_name(raw_name)
        if size == U32 or packed == U32 or offset == U32:
            size, packed, offset = _widen(extra, size, packed, offset)
        if size != packed and not method:
            raise UnreadableCheckpoint(f"record {name!r} has two different sizes")
        yield CentralHeader(name, flags, method, crc, size, offset)
    if position != len(directory):
        raise UnreadableCheckpoint("the zip's directory has bytes after its last entry")


def _check_name(raw: bytes) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnreadableCheckpoint("a record of the zip has a name that is no text") from error
    parts = name.split("/")
    if len(parts) < 2 or not name.isprintable() or "\\" in name or not _NO_NAMES.isdisjoint(parts):
        raise UnreadableCheckpoint(
            f"a record of the zip has a name that torch does not write: {name[:80]!r}"
        )
    return name


def _widen(extra: bytes, size: int, packed: int, offset: int) -> tuple[int, int, int]:
    """Size, packed size and header offset, taken from the zip64 extra field where the narrow ones are full."""
    needed = [value == U32 for value in (size, packed, offset)]
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

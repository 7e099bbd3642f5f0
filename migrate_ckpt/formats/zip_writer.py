"""Lays out a zip as torch writes it, as pieces: records that are kept stay ranges of the source.

Every record is stored, its bytes begin at a multiple of 64, sizes and CRC stand in a descriptor after it and in
the directory, and 64-bit end records are always there (torch's `PyTorchStreamWriter`, which uses miniz). A run of
records that follow each other in the source is kept whole: the first header is written anew, padded so that all of
the run moves by a multiple of 64, or of a page where it is large, and the rest, headers included, is one range.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator

from migrate_ckpt.formats.container import Stored
from migrate_ckpt.formats.pieces import NewBytes, Pieces
from migrate_ckpt.formats.source import Source, crc_of
from migrate_ckpt.formats.zip_layout import (
    CENTRAL_HEADER,
    DESCRIPTOR,
    DESCRIPTOR64,
    END,
    END64,
    END64_LOCATOR,
    FLAG_DESCRIPTOR,
    FLAG_UTF8,
    LOCAL_HEADER,
    U16,
    U32,
    Entry,
)

ALIGNMENT = 64
# A file system copies whole pages where source and target agree modulo their size: a gigabyte in three quarters of the
# time (measured on ext4). A short run is not worth the padding.
PAGE_BYTES = 4096
LARGE_RUN_BYTES = 1 << 20


class ZipWriter:
    """Collects records in the order they shall have; `finish` gives the pieces of the whole file."""

    def __init__(self) -> None:
        self._pieces = Pieces()
        self._directory: list[Entry] = []

    def add(self, name: str, data: NewBytes) -> None:
        """Append a record with new bytes."""
        crc = zlib.crc32(data)
        header_offset, data_offset = self._add_header(name, len(data), phase=0)
        self._pieces.add_bytes(data)
        self._add_descriptor(header_offset, crc, len(data))
        self._note(name, header_offset, data_offset, len(data), crc, _flags(len(data)))

    def add_range(self, name: str, source: Source, stored: Stored) -> None:
        """Append a record whose bytes are a range of a source that has no CRC of them."""
        crc = crc_of(source, stored.data_offset, stored.size)
        header_offset, data_offset = self._add_header(name, stored.size, phase=0)
        self._pieces.add_range(stored.data_offset, stored.size)
        self._add_descriptor(header_offset, crc, stored.size)
        self._note(name, header_offset, data_offset, stored.size, crc, _flags(stored.size))

    def keep(self, entries: Iterable[Entry]) -> None:
        """Append records of the source as they are; those that follow each other there become one range."""
        for run in _runs(entries):
            length = run[-1].end - run[0].header_offset
            alignment = PAGE_BYTES if length >= LARGE_RUN_BYTES else ALIGNMENT
            shift = self._keep_with_new_header(run[0], alignment)
            rest = run[1:]
            # Headers at 4 GiB and beyond carry their own offset, so they cannot be moved as they are.
            if rest and rest[-1].end + shift < U32:
                self._keep_with_their_headers(rest, shift)
                rest = []
            for entry in rest:
                if entry.end + shift < U32:
                    self._keep_with_their_headers([entry], shift)
                else:
                    shift = self._keep_with_new_header(entry, alignment)

    def crcs(self) -> Iterator[tuple[str, int, int]]:
        """Name, size and CRC of the records so far."""
        return ((entry.name, entry.size, entry.crc) for entry in self._directory)

    def finish(self) -> Pieces:
        """Append the directory and give all pieces."""
        start = self._pieces.size
        directory = bytearray().join(_central_header(entry) for entry in self._directory)
        count, end64 = len(self._directory), start + len(directory)
        directory += END64.pack(
            b"PK\6\6", END64.size - 12, 0x031E, 45, 0, 0, count, count, len(directory), start
        )
        directory += END64_LOCATOR.pack(b"PK\6\7", 0, end64, 1)
        directory += END.pack(
            b"PK\5\6",
            0,
            0,
            min(count, U16),
            min(count, U16),
            min(end64 - start, U32),
            min(start, U32),
            0,
        )
        self._pieces.add_bytes(bytes(directory))
        return self._pieces

    def _keep_with_their_headers(self, entries: list[Entry], shift: int) -> None:
        """Keep records that follow each other as one range, each with all that is its own."""
        start = entries[0].header_offset
        self._pieces.add_range(start, entries[-1].end - start)
        self._directory += [
            Entry(name, header + shift, data + shift, size, crc, flags, end + shift)
            for name, header, data, size, crc, flags, end in entries
        ]

    def _keep_with_new_header(self, entry: Entry, alignment: int) -> int:
        """Keep the bytes of a record behind a new header; gives how far they move, a multiple of the alignment."""
        header_offset, data_offset = self._add_header(
            entry.name, entry.size, phase=entry.data_offset, alignment=alignment
        )
        descriptor_size = entry.end - entry.data_offset - entry.size
        if descriptor_size == DESCRIPTOR.size and header_offset < U32:
            self._pieces.add_range(entry.data_offset, entry.size + descriptor_size)
        else:
            self._pieces.add_range(entry.data_offset, entry.size)
            self._add_descriptor(header_offset, entry.crc, entry.size)
        self._note(
            entry.name, header_offset, data_offset, entry.size, entry.crc, _flags(entry.size)
        )
        return data_offset - entry.data_offset

    def _add_header(
        self, name: str, size: int, *, phase: int, alignment: int = ALIGNMENT
    ) -> tuple[int, int]:
        """Write a local header so that the data begins at `phase` modulo `alignment`; gives both offsets."""
        header_offset, raw_name = self._pieces.size, name.encode()
        wide = b""
        if size >= U32 or header_offset >= U32:
            numbers = ([size, 0] if size >= U32 else []) + (
                [header_offset] if header_offset >= U32 else []
            )
            wide = struct.pack(f"<2H{len(numbers)}Q", 1, 8 * len(numbers), *numbers)
        start = header_offset + LOCAL_HEADER.size + len(raw_name) + len(wide) + 4
        padding = (phase - start) % alignment
        extra = wide + struct.pack("<2sH", b"FB", padding) + b"Z" * padding
        header = LOCAL_HEADER.pack(
            b"PK\3\4", 0, _flags(size), 0, 0, 0, 0, 0, 0, len(raw_name), len(extra)
        )
        self._pieces.add_bytes(header + raw_name + extra)
        return header_offset, start + padding

    def _add_descriptor(self, header_offset: int, crc: int, size: int) -> None:
        if size:
            layout = DESCRIPTOR64 if size >= U32 or header_offset >= U32 else DESCRIPTOR
            self._pieces.add_bytes(layout.pack(b"PK\7\x08", crc, size, size))

    def _note(
        self, name: str, header_offset: int, data_offset: int, size: int, crc: int, flags: int
    ) -> None:
        self._directory.append(
            Entry(name, header_offset, data_offset, size, crc, flags, self._pieces.size)
        )


def _runs(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Records that follow each other in the source, up to where headers cannot be kept."""
    run: list[Entry] = []
    for entry in entries:
        if run and not (run[-1].end == entry.header_offset and entry.end < U32):
            yield run
            run = []
        run.append(entry)
    if run:
        yield run


def _flags(size: int) -> int:
    return FLAG_UTF8 | FLAG_DESCRIPTOR if size else FLAG_UTF8


def _central_header(entry: Entry) -> bytes:
    name, extra = entry.name.encode(), b""
    if entry.size >= U32 or entry.header_offset >= U32:
        numbers = [entry.size, entry.size] if entry.size >= U32 else []
        if entry.header_offset >= U32:
            numbers.append(entry.header_offset)
        extra = struct.pack(f"<2H{len(numbers)}Q", 1, 8 * len(numbers), *numbers)
    size, offset = min(entry.size, U32), min(entry.header_offset, U32)
    fields = (
        b"PK\1\2",
        0,
        0,
        entry.flags,
        0,
        0,
        0,
        entry.crc,
        size,
        size,
        len(name),
        len(extra),
        0,
        0,
        0,
        0,
        offset,
    )
    return CENTRAL_HEADER.pack(*fields) + name + extra

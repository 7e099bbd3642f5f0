"""A stored zip of a short member and a long one that is streamed: its CRC is known only after it.

Layout as in PKWARE's APPNOTE 6.3: local headers (4.3.7), a data descriptor behind the streamed
member (4.3.9), the central directory (4.3.12), and zip64 records (4.3.14, 4.3.15, 4.5.3) where 32
bits do not do.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

_STREAMED = 1 << 3
_UTF8 = 1 << 11
# 1 January 1980, the format's zero: an archive's bytes depend on its content only.
_DATE = 0x0021
_TOO_LARGE = 0xFFFFFFFF
# Below this, the offset of the directory fits as well.
_ZIP64_FROM = _TOO_LARGE - 2**24
_VERSION, _VERSION_ZIP64 = 20, 45


@dataclass(frozen=True, slots=True)
class StoredZip:
    """The archive but for the long member's bytes: they go between the head and the tail."""

    short_name: str
    short: bytes
    long_name: str
    long_size: int

    @property
    def size(self) -> int:
        return len(self.head()) + self.long_size + len(self.tail(0))

    def head(self) -> bytes:
        return self._short_record() + self._local_header()

    def tail(self, crc: int) -> bytes:
        """Return what follows the long member, whose CRC-32 is known by then."""
        descriptor = self._descriptor(crc)
        directory = self._directory(crc)
        offset = len(self.head()) + self.long_size + len(descriptor)
        return descriptor + directory + self._end(len(directory), offset)

    @property
    def _is_zip64(self) -> bool:
        return self.long_size >= _ZIP64_FROM

    @property
    def _version(self) -> int:
        return _VERSION_ZIP64 if self._is_zip64 else _VERSION

    def _short_record(self) -> bytes:
        crc, size = zlib.crc32(self.short), len(self.short)
        return _local(_VERSION, _UTF8, crc, size, self.short_name) + self.short

    def _local_header(self) -> bytes:
        # CRC and sizes are zero here: they follow in the descriptor.
        flags = _UTF8 | _STREAMED
        if not self._is_zip64:
            return _local(self._version, flags, 0, 0, self.long_name)
        extra = _zip64_extra(0, 0)
        return _local(self._version, flags, 0, _TOO_LARGE, self.long_name, extra)

    def _descriptor(self, crc: int) -> bytes:
        layout = "<4sLQQ" if self._is_zip64 else "<4sLLL"
        return struct.pack(layout, b"PK\x07\x08", crc, self.long_size, self.long_size)

    def _directory(self, crc: int) -> bytes:
        size, extra = self.long_size, b""
        if self._is_zip64:
            size, extra = _TOO_LARGE, _zip64_extra(self.long_size, self.long_size)
        short_crc, short_size = zlib.crc32(self.short), len(self.short)
        return _central(_VERSION, _UTF8, short_crc, short_size, self.short_name, 0) + _central(
            self._version,
            _UTF8 | _STREAMED,
            crc,
            size,
            self.long_name,
            len(self._short_record()),
            extra,
        )

    def _end(self, size: int, offset: int) -> bytes:
        if not self._is_zip64:
            return struct.pack("<4sHHHHLLH", b"PK\x05\x06", 0, 0, 2, 2, size, offset, 0)
        version = _VERSION_ZIP64
        return b"".join(
            (
                struct.pack("<4sQHH", b"PK\x06\x06", 44, version, version),
                struct.pack("<LLQQQQ", 0, 0, 2, 2, size, offset),
                struct.pack("<4sLQL", b"PK\x06\x07", 0, offset + size, 1),
                struct.pack("<4sHHHHLLH", b"PK\x05\x06", 0, 0, 2, 2, size, _TOO_LARGE, 0),
            )
        )


def _zip64_extra(size: int, stored_size: int) -> bytes:
    return struct.pack("<HHQQ", 1, 16, size, stored_size)


def _local(version: int, flags: int, crc: int, size: int, name: str, extra: bytes = b"") -> bytes:
    encoded = name.encode("utf-8")
    lengths = (len(encoded), len(extra))
    fields = struct.pack("<HHHHHLLLHH", version, flags, 0, 0, _DATE, crc, size, size, *lengths)
    return b"PK\x03\x04" + fields + encoded + extra


def _central(
    version: int, flags: int, crc: int, size: int, name: str, offset: int, extra: bytes = b""
) -> bytes:
    encoded = name.encode("utf-8")
    sizes = (crc, size, size, len(encoded), len(extra), 0)
    # Made by a Unix system: the upper half of the attributes is a plain file's mode.
    made_by = 3 << 8 | version
    fields = struct.pack("<HHHHHHLLLHHH", made_by, version, flags, 0, 0, _DATE, *sizes)
    place = struct.pack("<HHLL", 0, 0, 0o100644 << 16, offset)
    return b"PK\x01\x02" + fields + place + encoded + extra

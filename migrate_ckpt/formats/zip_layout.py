"""How a zip is laid out: its headers, and what is known of one record (PKWARE APPNOTE 6.3.10)."""

from __future__ import annotations

import struct
from typing import NamedTuple

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

"""Finds where a pickle ends that stands in a file before other bytes."""

from __future__ import annotations

import pickletools

from migrate_ckpt.errors import TooLarge, UnreadableCheckpoint
from migrate_ckpt.formats.pickle_reader import MAX_PICKLE_BYTES
from migrate_ckpt.formats.source import Source

_FIRST_WINDOW_BYTES = 1 << 16
_WINDOW_GROWTH = 8

# How many bytes follow an opcode: so many, lines of text (as a negative number), or as many as a number of so many
# bytes says. None for a byte that is no opcode.
_FIXED: list[int | None] = [None] * 256
_COUNT_BYTES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_COUNTED: dict[int, int] = {}
for _opcode in pickletools.opcodes:
    _code, _argument = ord(_opcode.code), _opcode.arg
    if _argument is None:
        _FIXED[_code] = 0
    elif _argument.n >= 0:
        _FIXED[_code] = _argument.n
    elif _argument.n == pickletools.UP_TO_NEWLINE:
        _FIXED[_code] = -2 if _argument.name == "stringnl_noescape_pair" else -1
    else:
        _COUNTED[_code] = _COUNT_BYTES[_argument.n]
_STOP = ord(".")


def pickle_at(source: Source, offset: int) -> bytes:
    """The bytes of the pickle that begins at `offset`.

    Raises:
        UnreadableCheckpoint: There is none, or the source ends before it does.
        TooLarge: It is larger than any checkpoint's.
    """
    window = min(_FIRST_WINDOW_BYTES, MAX_PICKLE_BYTES)
    while True:
        data = source.read(offset, window)
        length = _length(data)
        if length is not None:
            return data[:length]
        if len(data) < window:
            raise UnreadableCheckpoint("the file ends in the middle of a pickle: it is cut off")
        if window == MAX_PICKLE_BYTES:
            raise TooLarge(f"a pickle in the file has more than {MAX_PICKLE_BYTES} bytes")
        window = min(window * _WINDOW_GROWTH, MAX_PICKLE_BYTES)


def _length(data: bytes) -> int | None:
    """Length of the pickle that `data` begins with; None where more of it is needed."""
    position, end = 0, len(data)
    while position < end:
        code = data[position]
        if code == _STOP:
            return position + 1
        position += 1
        follows = _FIXED[code]
        if follows is None:
            width = _COUNTED.get(code)
            if width is None:
                raise UnreadableCheckpoint("the file has other bytes where a pickle should be")
            position += width + int.from_bytes(data[position : position + width], "little")
        elif follows >= 0:
            position += follows
        else:
            for _ in range(-follows):
                position = data.find(b"\n", position) + 1 or end
    return None

"""Runs of dict entries in the opcodes of a pickle: a short text, noted in the memo, and a plain value, again and again.

A dict of many numbers is nearly nothing else. Where the texts have one length, so have all opcodes of an entry: each
byte that is not free to be anything stands in a column, and a thousand of them are looked at as one string.
"""

from __future__ import annotations

import pickle
from typing import NamedTuple

from migrate_ckpt.formats.shadows import ATOM, CHOSEN

MAX_KEY_BYTES = 128
# As many as a pickler puts into a dict at once.
MAX_ENTRIES = 1000
# A column costs the same however soon it differs, so that a few entries are looked at before many are.
_FIRST_ENTRIES = 16
_GROWTH = 8

_KEY_START = 5
_PUT_BYTES = 5
# Of opcodes that push a plain value: those that may follow each other, their length, the shadow of the value.
_VALUES: dict[int, tuple[bytes, int, int]] = {
    **{
        opcode[0]: (pickle.NONE + pickle.NEWTRUE + pickle.NEWFALSE, 1, ATOM)
        for opcode in (pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE)
    },
    pickle.BININT1[0]: (pickle.BININT1, 2, ATOM),
    pickle.BININT2[0]: (pickle.BININT2, 3, ATOM),
    pickle.BININT[0]: (pickle.BININT, 5, ATOM),
    pickle.BINFLOAT[0]: (pickle.BINFLOAT, 9, ATOM | CHOSEN),
}


class _Entry(NamedTuple):
    """What entries of one kind are made of: their bytes, the shadow of the value, and the columns.

    A column is the place in the entry, from its start, and all bytes that may stand there.
    """

    size: int
    shadow: int
    columns: tuple[tuple[int, bytes], ...]


class EntryRuns:
    """Finds the runs in one pickle."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._put = _put_below(len(data))
        self._entries: dict[tuple[int, int], _Entry] = {}

    def take(self, position: int, length: int) -> tuple[int, list[int]]:
        """Where the run ends that begins at `position` with a text of `length` bytes, and the shadows that it pushes.

        The position itself and none, where no run begins.
        """
        put = position + _KEY_START + length
        if length > MAX_KEY_BYTES or self._data[put] != pickle.LONG_BINPUT[0]:
            return position, []
        opcode = self._data[put + _PUT_BYTES]
        if opcode not in _VALUES:
            return position, []
        entry = self._entries.get((length, opcode))
        if entry is None:
            entry = self._entries[length, opcode] = self._entry(length, opcode)
        next_value = put + _PUT_BYTES + entry.size
        if next_value >= len(self._data) or self._data[next_value] not in entry.columns[-1][1]:
            return position, []
        count = self._count(position, entry)
        return position + count * entry.size, [ATOM, entry.shadow] * count

    def _count(self, position: int, entry: _Entry) -> int:
        """How many entries of this kind stand there one after the other, up to `MAX_ENTRIES`."""
        count, most = 0, _FIRST_ENTRIES
        while count < MAX_ENTRIES:
            most = min(most, MAX_ENTRIES - count)
            found = self._count_at_once(position + count * entry.size, entry, most)
            count += found
            if found < most:
                break
            most *= _GROWTH
        return count

    def _count_at_once(self, position: int, entry: _Entry, most: int) -> int:
        count = min(most, (len(self._data) - position) // entry.size)
        for place, allowed in entry.columns:
            column = self._data[position + place : position + count * entry.size : entry.size]
            if column.translate(None, allowed):
                count -= len(column.lstrip(allowed))
        return count

    def _entry(self, length: int, opcode: int) -> _Entry:
        values, value_bytes, shadow = _VALUES[opcode]
        key = pickle.BINUNICODE + length.to_bytes(4, "little")
        after_key = _KEY_START + length
        columns = (
            *((place, bytes([byte])) for place, byte in enumerate(key)),
            *((after_key + place, allowed) for place, allowed in self._put),
            (after_key + _PUT_BYTES, values),
        )
        return _Entry(after_key + _PUT_BYTES + value_bytes, shadow, columns)


def _put_below(size: int) -> tuple[tuple[int, bytes], ...]:
    """The columns of the opcode that notes an object, at an index that is surely below the pickle's size.

    That is, below the size with all but its highest byte cleared. Higher ones are looked at one by one.
    """
    low_bytes = max(0, (size.bit_length() - 1) // 8)
    below_highest = bytes(range(size >> 8 * low_bytes))
    return (
        (0, pickle.LONG_BINPUT),
        (1 + low_bytes, below_highest),
        *((place, b"\0") for place in range(2 + low_bytes, _PUT_BYTES)),
    )

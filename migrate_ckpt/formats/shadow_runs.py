"""Runs of dict entries in the opcodes of a pickle: a short text, noted in the memo, and a plain value, again and again.

A dict of many numbers is nearly nothing else. Where the texts have one length, so have all opcodes of an entry, and one
pattern passes over a thousand of them.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable

from migrate_ckpt.formats.shadows import ATOM, CHOSEN

MAX_KEY_BYTES = 128
# As many as a pickler puts into a dict at once, and few enough for the pattern to remember.
MAX_ENTRIES = 1000

_KEY_START = 5
_PUT_BYTES = 5
# Of opcodes that push a plain value: their pattern, their length, the shadow of the value.
_VALUES: dict[int, tuple[bytes, int, int]] = {
    **{
        opcode[0]: (rb"[N\x88\x89]", 1, ATOM)
        for opcode in (pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE)
    },
    pickle.BININT1[0]: (rb"K.", 2, ATOM),
    pickle.BININT2[0]: (rb"M..", 3, ATOM),
    pickle.BININT[0]: (rb"J.{4}", 5, ATOM),
    pickle.BINFLOAT[0]: (rb"G.{8}", 9, ATOM | CHOSEN),
}


class EntryRuns:
    """Finds the runs in one pickle."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._matches: dict[tuple[int, int], Callable[[bytes, int], re.Match[bytes] | None]] = {}

    def take(self, position: int, length: int) -> tuple[int, list[int]]:
        """Where the run ends that begins at `position` with a text of `length` bytes, and the shadows that it pushes.

        The position itself and none, where no run begins.
        """
        after_key = position + _KEY_START + length
        if length > MAX_KEY_BYTES or self._data[after_key] != pickle.LONG_BINPUT[0]:
            return position, []
        opcode = self._data[after_key + _PUT_BYTES]
        if opcode not in _VALUES:
            return position, []
        value, value_bytes, shadow = _VALUES[opcode]
        match = self._matches.get((length, opcode))
        if match is None:
            match = self._matches[length, opcode] = self._pattern(length, value).match
        found = match(self._data, position)
        if found is None:
            return position, []
        count = (found.end() - position) // (_KEY_START + length + _PUT_BYTES + value_bytes)
        return found.end(), [ATOM, shadow] * count

    def _pattern(self, length: int, value: bytes) -> re.Pattern[bytes]:
        key = re.escape(pickle.BINUNICODE + length.to_bytes(4, "little")) + rb".{%d}" % length
        return re.compile(rb"(?:%b%b%b){1,%d}" % (key, self._put(), value, MAX_ENTRIES), re.DOTALL)

    def _put(self) -> bytes:
        """The opcode that notes an object, at an index that is surely below the pickle's size.

        That is, below the size with all but its highest byte cleared. Higher ones are looked at one by one.
        """
        size = len(self._data)
        low_bytes = max(0, (size.bit_length() - 1) // 8)
        highest = (size >> 8 * low_bytes) - 1
        if highest < 0:
            return rb"(?!)"
        digit = rb"[\x00-%b]" % re.escape(bytes([highest]))
        return rb"r.{%d}%b\0{%d}" % (low_bytes, digit, 3 - low_bytes)

"""Plain tensors in the opcodes of a pickle, each found by one pattern and written shorter.

torch's pickler writes some thirty opcodes for every tensor: a call of `_rebuild_tensor_v2` with a storage, by its
persistent id, and an offset, size, stride, `requires_grad` and no hooks. In a file of many small tensors they are
nearly all there is. Where the function, the storage's type and the `OrderedDict` of the hooks come out of the memo,
as they do from the second tensor of a type on, the pattern reads all of them at once, and one short persistent id of
what came out of the memo takes their place.

What the pattern cannot know is checked where it is known. Whether the memo gives the right things there, the reader
looks at when it comes to that id. Whether anything else in the pickle fetches what the pattern leaves out of the memo
is asked here. In either case the pickle is read opcode by opcode, as if there were no pattern.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from migrate_ckpt.formats.storages import MAX_DIMENSIONS

MAX_KEY_DIGITS = 16

_GET = rb"(?:h.|j....)"
_PUT = rb"(?:q.|r....)?"
_INT = rb"(?:K.|M..|J....)"
_KEY = rb"X(?:%b)" % b"|".join(
    rb"%b\0\0\0\d{%d}" % (re.escape(bytes([count])), count)
    for count in range(1, MAX_KEY_DIGITS + 1)
)
_LOCATION = rb"X(?:\x03\0\0\0(?:cpu|mps)|\x06\0\0\0cuda:\d)"
_INTS = rb"(?:\)|%b\x85|%b{2}\x86|%b{3}\x87" % (_INT, _INT, _INT) + rb"|\(%b{0,%d}t)" % (
    _INT,
    MAX_DIMENSIONS,
)
_TENSOR = re.compile(
    rb"(%b)\(\((%b|X\x07\0\0\0storage)(%b)" % (_GET, _GET, _GET)
    + rb"((?:%b(%b))|%b)(%b|%b)(%b)t(%b)Q" % (_KEY, _PUT, _GET, _GET, _LOCATION, _INT, _PUT)
    + rb"(%b)(%b)(%b)(%b)(%b)([\x88\x89])" % (_INT, _INTS, _PUT, _INTS, _PUT)
    + rb"(%b)\)R(%b)t(%b)R" % (_GET, _PUT, _PUT),
    re.DOTALL,
)
# Groups of the pattern. What makes the key is kept with its place in the memo: views of one storage share it.
_KEPT = (1, 2, 3, 4, 6, 15)
_KEY_PUT = 5
_PUTS = (8, 11, 13, 16, 17)
_NUMBERS = (7, 9, 10, 12, 14)

_INT_TOKEN = re.compile(rb"K(.)|M(..)|J(....)", re.DOTALL)


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """What a pickle says of a tensor in numbers. Offset and strides are in elements, `numel` is the storage's."""

    numel: int
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    requires_grad: bool

    @property
    def is_whole(self) -> bool:
        """Whether it is all of its storage, in one dimension."""
        return self.size == (self.numel,) and self.stride == (1,) and self.offset == 0


class TensorMatches:
    """The plain tensors that a walk through the opcodes of one pickle comes by.

    Attributes:
        fetched: Every index of the memo that an opcode outside the matches fetches, for whoever walks to note.
        is_usable: False where the pickle has lengths or numbers that count what the matches leave out.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._found: list[re.Match[bytes]] = []
        self.fetched: set[int] = set()
        self.is_usable = True

    def __len__(self) -> int:
        return len(self._found)

    def take(self, position: int) -> int:
        """Where the tensor ends whose opcodes begin at `position`; 0 where none does."""
        found = _TENSOR.match(self._data, position)
        if found is None:
            return 0
        self._found.append(found)
        return found.end()

    def shorten(self) -> tuple[bytes, list[Layout]] | None:
        """The pickle with a persistent id in the place of each tensor, and the numbers of the tensors in their order.

        The id is a tuple of what the pickle gives as function, as the text "storage", as the storage's type, key and
        device tag, and as the function of the hooks. Equal numbers are one object. None where the pickle cannot do
        without what is left out, or numbers its memo in a way that no pickler does.
        """
        if not self.is_usable:
            return None
        kept = {opcodes for found in self._found for opcodes in found.group(1, 2, 3, 6, 15)}
        kept.update(found[4] for found in self._found if not found[5])
        puts = _puts_of(self.fetched.union(*map(_fetched_by, kept)))
        parts: list[bytes] = []
        layouts: list[Layout] = []
        end = 0
        for found in self._found:
            key_put = found[_KEY_PUT] or b""
            if not puts.isdisjoint(found.group(*_PUTS)) or int.from_bytes(
                key_put[1:], "little"
            ) >= len(self._data):
                return None
            layouts.append(_layout(*found.group(*_NUMBERS)))
            parts += self._data[end : found.start()], b"(", *found.group(*_KEPT), b"tQ"
            end = found.end()
        parts.append(self._data[end:])
        return b"".join(parts), layouts


def _fetched_by(opcodes: bytes) -> tuple[int, ...]:
    return (int.from_bytes(opcodes[1:], "little"),) if opcodes[:1] in b"hj" else ()


def _puts_of(indices: Iterable[int]) -> set[bytes]:
    """All opcodes of the pattern that put something at these indices."""
    indices = {index for index in indices if index < 1 << 32}
    return {b"r" + index.to_bytes(4, "little") for index in indices} | {
        b"q" + bytes([index]) for index in indices if index < 1 << 8
    }


@lru_cache(maxsize=1 << 12)
def _layout(
    numel: bytes, offset: bytes, size: bytes, stride: bytes, requires_grad: bytes
) -> Layout:
    (storage_numel,), (first,) = _ints(numel), _ints(offset)
    return Layout(storage_numel, first, _ints(size), _ints(stride), requires_grad == b"\x88")


def _ints(opcodes: bytes) -> tuple[int, ...]:
    """The numbers that some opcodes push. Those of four bytes have a sign."""
    numbers = []
    token = _INT_TOKEN.match(opcodes, opcodes[:1] == b"(")
    while token is not None:
        width = token.lastindex
        assert width is not None
        numbers.append(int.from_bytes(token[width], "little", signed=width == 3))
        token = _INT_TOKEN.match(opcodes, token.end())
    return tuple(numbers)

"""Shadows: what is known of each object that a pickle would build, as one small number, and the limits they have.

A shadow is made of:

* its weight: how many values a hash or a comparison of it visits; 0 for what cannot be hashed;
* whether its hash could be chosen by whoever made the file;
* whether calling it gives a value that is hashed by content, and not an object that is hashed by identity;
* its level: how deep lists, calls and states are nested in it. What is put into an object after the object itself
  was put elsewhere does not count, as it does not count for the recursion of a pickler either.
"""

from __future__ import annotations

from collections import Counter
from typing import NoReturn

from migrate_ckpt.errors import TooLarge, UnsafePickle
from migrate_ckpt.formats.keys import (
    MAX_KEY_WEIGHT,
    MAX_SAFE_KEY_WEIGHT,
    refuse_heavy,
    refuse_many_chosen,
)
from migrate_ckpt.formats.tensor_matches import TensorMatches

MAX_DEPTH = 400
MAX_COLLIDING_INTS = 100
MAX_OBJECT_BYTES = 2 << 30
"""For containers and recorded calls, which take up to 300 times the bytes of their opcodes."""

# The shadow: the weight in the lower 13 bits, then the two answers, above them the level.
WEIGHT = (1 << 13) - 1
CHOSEN = 1 << 13
GIVES_VALUE = 1 << 14
LEVEL_BITS = 16
LEVEL = 1 << LEVEL_BITS
ATOM = 1
HEAVY = MAX_KEY_WEIGHT + 1
CONTAINER = LEVEL
TOO_DEEP = (MAX_DEPTH + 1) << LEVEL_BITS

# Bytes in memory on a 64-bit machine, roughly.
SET_BYTES, DICT_BYTES, LIST_BYTES, TUPLE_BYTES, CALL_BYTES = 216, 64, 56, 56, 320

# Of the opcodes of a whole plain tensor: a call, with a tuple, with another call in it. And four tuples in all.
PLAIN_TENSOR = 3 << LEVEL_BITS | ATOM
PLAIN_TENSOR_BYTES = 2 * CALL_BYTES + 4 * TUPLE_BYTES


class Shadows:
    """The unpickler's stack, marks and memo, with shadows in place of objects."""

    __slots__ = (
        "chosen_keys",
        "data",
        "fetched",
        "has_put",
        "marks",
        "memo",
        "object_bytes",
        "stack",
        "tensors",
        "wide_ints",
    )

    def __init__(self, data: bytes, tensors: TensorMatches | None = None) -> None:
        self.data = data
        self.tensors = tensors
        self.fetched: set[int] = tensors.fetched if tensors is not None else set()
        self.stack: list[int] = []
        self.marks: list[int] = []
        # An atom is not noted in it: what is not here is an atom, or the unpickler itself will refuse it.
        self.memo: dict[int, int] = {}
        self.has_put = False
        self.object_bytes = 0
        self.chosen_keys = 0
        self.wide_ints: set[bytes] = set()

    def take_marked(self) -> list[int]:
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def hold(self, shadow: int) -> None:
        """Note that the topmost object holds another one."""
        level = shadow >> LEVEL_BITS
        top = self.stack[-1]
        if level >= top >> LEVEL_BITS:
            self.stack[-1] = checked((level + 1) << LEVEL_BITS | (top & (LEVEL - 1)))

    def check_keys(self, keys: list[int]) -> None:
        """Check keys of a dict or members of a set."""
        if keys.count(ATOM) == len(keys):
            return
        for key in keys:
            weight = key & WEIGHT
            if weight == 0:
                raise UnsafePickle(
                    "the pickle has a key that cannot be one: a list, a dict or a set"
                )
            if weight > MAX_KEY_WEIGHT:
                refuse_heavy()
            # Single numbers are looked at all together in the end.
            if weight > MAX_SAFE_KEY_WEIGHT or (key & CHOSEN and weight > 1):
                self.chosen_keys += 1

    def check_sums(self) -> None:
        """Check in the end what only all opcodes together say."""
        if self.object_bytes > MAX_OBJECT_BYTES:
            raise TooLarge(
                f"the pickle makes objects of {self.object_bytes} bytes in memory; the limit is {MAX_OBJECT_BYTES}"
            )
        refuse_many_chosen(self.chosen_keys)
        if len(self.wide_ints) > MAX_COLLIDING_INTS:
            hashes = Counter(
                hash(int.from_bytes(raw, "little", signed=True)) for raw in self.wide_ints
            )
            if max(hashes.values()) > MAX_COLLIDING_INTS:
                raise TooLarge("the pickle has many long numbers that have the same hash")


def tuple_of(items: list[int]) -> int:
    """The shadow of a tuple that is more than a few atoms."""
    weight, chosen = 1, 0
    for item in items:
        if not item & WEIGHT:
            weight = 0
            break
        weight += item & WEIGHT
        chosen |= item & CHOSEN
    level = (max(items) >> LEVEL_BITS) + 1
    return checked(level << LEVEL_BITS | chosen | min(weight, HEAVY))


def call_of(function: int, args: int) -> int:
    """The shadow of what a call gives: mostly an object that is hashed by its identity."""
    level = (max(function, args) >> LEVEL_BITS) + 1
    shadow = ATOM
    if function & GIVES_VALUE:
        weight = args & WEIGHT
        # A frozenset comes as a call with a list.
        shadow = (args & CHOSEN) | min(weight + 1, HEAVY) if weight else CHOSEN | 2
    return checked(level << LEVEL_BITS | shadow)


def checked(shadow: int) -> int:
    if shadow >= TOO_DEEP:
        raise TooLarge(f"the pickle nests objects more than {MAX_DEPTH} levels deep")
    return shadow


def refuse_index() -> NoReturn:
    raise UnsafePickle("the pickle numbers its memo in a way that no pickler does")

"""What a file may use as a key of a dict or a member of a set.

A key is hashed, and compared with others of the same hash, in C code that nothing can interrupt: a tuple that holds
another one twice, and so on forty levels down, takes for ever, and so do sixty thousand keys with one hash. Of a
single number or text only few others can share the hash, however the file was made. Of a tuple each part multiplies
these few, a float or a long integer in it can be chosen to give any hash, and so can the members of a frozenset.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from migrate_ckpt.errors import TooLarge, UnsafePickle

MAX_KEY_WEIGHT = 64
"""Values that a key consists of, itself included."""
MAX_KEY_BYTES = 32
"""Of an integer. A longer one may be a value; as a key it would be hashed as a whole again and again."""
MAX_SAFE_KEY_WEIGHT = 5
"""Heavier keys count as of a chosen hash: four parts with four possible values each make 256 keys of one hash."""
MAX_CHOSEN_KEYS = 10_000
"""Keys in a whole file whose hashes could be chosen: each may have to be compared with all before it."""

_INT_BITS = 32


class KeyCheck:
    """Checks the keys that a file's calls put into sets and dicts, and counts them."""

    def __init__(self) -> None:
        self._chosen = 0

    def check(self, keys: Iterable[Any]) -> None:
        """Check keys before they are hashed.

        Raises:
            UnsafePickle: One of them consists of too much.
            TooLarge: There are too many that could all have the same hash.
        """
        for key in keys:
            if isinstance(key, (tuple, frozenset, complex)) or type(key) is int:
                weight, is_chosen = _weigh(key)
                self._chosen += weight > MAX_SAFE_KEY_WEIGHT or (is_chosen and type(key) is not int)
        refuse_many_chosen(self._chosen)


def refuse_many_chosen(count: int) -> None:
    """Raise TooLarge if there are so many keys of a hash that could be chosen."""
    if count > MAX_CHOSEN_KEYS:
        raise TooLarge(
            f"the pickle has {count} keys that are made of many values, or of fractions or long numbers, and could all "
            f"have the same hash; the limit is {MAX_CHOSEN_KEYS}"
        )


def refuse_heavy() -> None:
    raise UnsafePickle(
        f"the pickle has a key that consists of more than {MAX_KEY_WEIGHT} values, or a very long number as a key"
    )


def _weigh(key: Any) -> tuple[int, bool]:
    """How many values a key consists of, and whether its hash could be chosen."""
    weight, is_chosen, parts = 0, False, [key]
    while parts:
        part = parts.pop()
        weight += 1
        if isinstance(part, (tuple, frozenset)):
            is_chosen = is_chosen or isinstance(part, frozenset)
            weight += max(0, len(part) - MAX_KEY_WEIGHT)
            parts.extend(list(part)[:MAX_KEY_WEIGHT])
        elif isinstance(part, (float, complex)):
            is_chosen = True
        elif type(part) is int:
            is_chosen = is_chosen or part.bit_length() > _INT_BITS
            weight += MAX_KEY_WEIGHT * (part.bit_length() > MAX_KEY_BYTES * 8)
        if weight > MAX_KEY_WEIGHT:
            refuse_heavy()
    return weight, is_chosen

"""Random graphs of objects, as checkpoints hold them, and whether two of them are the same."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import enum
import fractions
import functools
import pathlib
import struct
import types
import uuid
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Slotted:
    __slots__ = ("left", "right")

    def __init__(self, left: Any) -> None:
        self.left = left

    def __getstate__(self) -> Any:
        return None, {"left": self.left}


class Table(dict):  # type: ignore[type-arg]
    """A dict with attributes."""


class Row(list):  # type: ignore[type-arg]
    """A list with attributes."""


class Keeper:
    """An object that keeps the very state that it is given."""

    def __init__(self, state: Any) -> None:
        self.kept = state

    def __getstate__(self) -> Any:
        return self.kept

    def __setstate__(self, state: Any) -> None:
        self.kept = state


class Member:
    """An object for a set, with its number among the members."""

    def __init__(self, number: int, value: Any) -> None:
        self.number = number
        self.value = value


class WithArguments:
    """What is made again by a call with arguments, a state and items."""

    def __init__(self, *args: Any) -> None:
        self.args = args
        self.items: list[Any] = []

    def append(self, item: Any) -> None:
        self.items.append(item)

    def __reduce__(self) -> Any:
        return WithArguments, self.args, {"seen": True}, iter(self.items)


def _namespace(value: Any) -> argparse.Namespace:
    return argparse.Namespace(value=value)


def _ordered(value: Any) -> Any:
    made = collections.OrderedDict([("first", value), (3, value)])
    made._metadata = {"version": value}  # type: ignore[attr-defined]
    return made


def _table(value: Any) -> Table:
    made = Table(key=value)
    made.unit = value  # type: ignore[attr-defined]
    return made


def _row(value: Any) -> Row:
    made = Row([value, value])
    made.unit = value  # type: ignore[attr-defined]
    return made


def _default(value: Any) -> Any:
    return collections.defaultdict(list, {"key": value})


def _with_arguments(value: Any) -> WithArguments:
    # An argument that leads back to the object is more than pickle itself can do.
    made = WithArguments(1, value if _is_value(value) else "x")
    made.append(value)
    return made


def _keepers(value: Any) -> list[Any]:
    """Objects that share a state, or a part of one, which the value may lead back to."""
    state, slots = {"key": value}, {"slot": value}
    made = [Keeper(state), Keeper((state, slots)), state, Keeper(state), Keeper((None, slots))]
    return [*made, Keeper(({}, {"slot": value}))]


def _members(value: Any) -> list[Any]:
    # A set, too, cannot be led back to.
    members = [Member(number, value if _is_value(value) else "x") for number in range(3)]
    return [members[1], set(members), frozenset(members[:2]), value]


WRAPPERS: list[Callable[[Any], Any]] = [
    lambda value: [value],
    lambda value: [value, value],
    lambda value: (value,),
    lambda value: (value, 1, value, "x"),
    lambda value: {"key": value},
    lambda value: {(1, "a"): value, 2: value, None: 0},
    lambda value: collections.deque([value], maxlen=3),
    _namespace,
    lambda value: types.SimpleNamespace(value=value),
    Slotted,
    _ordered,
    _table,
    _row,
    _default,
    _with_arguments,
    _keepers,
    _members,
    lambda value: functools.partial(print, value, end=value),
]

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.just("\ud800"),
    st.just("x" * 300),
    st.binary(max_size=5),
    st.just(b"x" * 300),
    st.binary(max_size=3).map(bytearray),
    st.complex_numbers(),
    st.sets(st.integers() | st.text(max_size=2), max_size=4),
    st.frozensets(st.integers() | st.tuples(st.integers(), st.booleans()), max_size=4),
    st.sampled_from(
        [
            (),
            Color.RED,
            Color.BLUE,
            Color,
            pathlib.PurePosixPath("a/b"),
            datetime.datetime(2020, 1, 2, tzinfo=datetime.timezone.utc),
            datetime.timedelta(days=3),
            uuid.UUID(int=7),
            decimal.Decimal("1.5"),
            fractions.Fraction(1, 3),
            range(1, 9, 2),
            collections.Counter("abca"),
            print,
            ...,
        ]
    ),
)
KEYS = st.one_of(
    st.text(max_size=4),
    st.integers(),
    st.booleans(),
    st.binary(max_size=3),
    st.floats(allow_nan=False),
    st.tuples(st.integers(), st.text(max_size=2)),
    st.frozensets(st.integers(), max_size=3),
    st.sampled_from([Color.RED, pathlib.PurePosixPath("k"), torch.float32, None]),
)


@st.composite
def graphs(draw: st.DrawFn, leaves: st.SearchStrategy[Any] = LEAVES) -> dict[Any, Any]:
    """A dict of values that hold each other: shared, nested, and in circles."""
    made: list[Any] = [{}, []]
    for _ in range(draw(st.integers(1, 8))):
        if draw(st.booleans()):
            made.append(draw(leaves))
        else:
            made.append(draw(st.sampled_from(WRAPPERS))(draw(st.sampled_from(made))))
    for container in made:
        if type(container) is list and draw(st.booleans()):
            container.append(draw(st.sampled_from(made)))
        elif type(container) is dict and draw(st.booleans()):
            container[draw(KEYS)] = draw(st.sampled_from(made))
    return {"graph": made, **{str(index): value for index, value in enumerate(made)}}


def difference(one: Any, other: Any) -> str:
    """Where two graphs differ in a value, a type, an order, or in what is one object and what is two; or nothing."""
    partners: dict[int, int] = {}
    keep: list[Any] = []
    left = [("", one, other)]
    while left:
        where, a, b = left.pop()
        if type(a) is not type(b):
            return f"{where}: {type(a)} and {type(b)}"
        if isinstance(a, (type, types.BuiltinFunctionType, types.FunctionType, torch.dtype)):
            if a is not b:
                return f"{where}: {a} and {b}"
            continue
        if _is_value(a):
            if _bits(a) != _bits(b):
                return f"{where}: {a!r} and {b!r}"
            continue
        if id(a) in partners:
            if partners[id(a)] != id(b):
                return f"{where}: shared in one only"
            continue
        if id(b) in partners.values():
            return f"{where}: shared in the other only"
        partners[id(a)] = id(b)
        parts = _parts(a), _parts(b)
        keep += [a, b, parts]
        if len(parts[0]) != len(parts[1]):
            return f"{where}: {len(parts[0])} and {len(parts[1])} parts"
        left += [
            (f"{where}.{index}", x, y) for index, (x, y) in enumerate(zip(*parts, strict=True))
        ]
    return ""


_VALUES = (type(None), bool, int, float, complex, str, bytes, bytearray, set, frozenset, range)


def _is_value(value: Any) -> bool:
    """Whether it is compared by value: it holds nothing, or nothing that could be shared."""
    if type(value) is tuple:
        return not value
    if type(value) in (set, frozenset):
        return not any(isinstance(member, Member) for member in value)
    return type(value) in _VALUES or value is ... or isinstance(value, enum.Enum)


def _bits(value: Any) -> Any:
    if type(value) is float:
        return struct.pack("d", value)
    if type(value) is complex:
        return struct.pack("2d", value.real, value.imag)
    return value


def _parts(value: Any) -> list[Any]:
    """What an object consists of, in order."""
    if isinstance(value, torch.Tensor):
        return _tensor_parts(value)
    if type(value) in (list, tuple):
        return list(value)
    if type(value) in (set, frozenset):
        return sorted(value, key=lambda member: member.number)
    if type(value) is dict:
        return [part for pair in value.items() for part in pair]
    _, args, state, items, pairs, *_ = (*value.__reduce_ex__(2), None, None, None)
    kept = [part for part in (state, *args) if not isinstance(part, type)]
    return [*kept, *(items or ()), *(part for pair in pairs or () for part in pair)]


# For each storage a list, which stands for it: two tensors of one storage have the same.
_STANDINS: dict[int, list[Any]] = {}


def _tensor_parts(tensor: torch.Tensor) -> list[Any]:
    storage = tensor.untyped_storage()
    return [
        *(str(tensor.dtype), tuple(tensor.shape), tensor.stride(), tensor.storage_offset()),
        *(tensor.requires_grad, bytes(storage.tolist()), _STANDINS.setdefault(storage._cdata, [])),
        dict(tensor.__dict__),
    ]

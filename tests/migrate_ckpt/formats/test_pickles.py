"""Reading and writing are each other's inverse, and neither imports or calls what a pickle names."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import enum
import fractions
import functools
import math
import os
import pathlib
import pickle
import sys
import types
import uuid
from typing import Any

import pytest

from migrate_ckpt.errors import UnreadableCheckpoint, UnsafePickle, UnwritableCheckpoint
from migrate_ckpt.foreign import ForeignGlobal, ForeignObject, describe
from migrate_ckpt.formats.container import Contents
from migrate_ckpt.formats.pickle_reader import read_pickle
from migrate_ckpt.formats.pickle_writer import write_pickle


class NoTensors:
    """A tensor builder and reducer for pickles without tensors."""

    def storage(self, pid: object) -> Any:
        raise UnreadableCheckpoint("no storages here")

    def constant(self, module: str, name: str) -> Any:
        from migrate_ckpt.formats.plain_values import NOT_FOLDED

        return NOT_FOLDED

    def folds(self) -> dict:
        return {}

    def finish(self) -> None:
        pass

    def reducers(self) -> dict:
        return {}

    def written_as(self, handle: Any) -> Any:
        return handle

    def reducer_of(self, obj: object) -> None:
        return None


def read(data: bytes) -> Contents:
    return read_pickle(data, NoTensors())


def write(value: Any, protocol: int = 2) -> bytes:
    return write_pickle(value, NoTensors(), protocol)


class Color(enum.Enum):
    RED = 1


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self) -> None:
        self.a = 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slotted) and self.a == other.a and not hasattr(other, "b")

    __hash__ = None


class Outer:
    class Inner:
        def __eq__(self, other: object) -> bool:
            return type(self) is type(other) and vars(self) == vars(other)

        __hash__ = None


class WithSetter:
    def __init__(self) -> None:
        self.x = 0

    def __reduce__(self) -> tuple:
        return WithSetter, (), {"x": self.x}, None, None, set_state

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WithSetter) and self.x == other.x

    __hash__ = None


def set_state(obj: WithSetter, state: dict) -> None:
    obj.x = state["x"]


class Table(dict):
    def __init__(self) -> None:
        self.unit = "m"


def inner() -> Outer.Inner:
    made = Outer.Inner()
    made.x = 5
    return made


def with_setter() -> WithSetter:
    made = WithSetter()
    made.x = 7
    return made


def table() -> Table:
    made = Table()
    made["k"] = [1]
    return made


VALUES = {
    "plain": {"a": [1, 2.5, None, True, "text", b"bytes", (), (1,), {"x"}, 2**80, math.inf]},
    "bytearray": bytearray(b"abc"),
    "complex": 1 + 2j,
    "frozenset": frozenset({1, (2, 3)}),
    "surrogate": "\ud800",
    "ordered": collections.OrderedDict(b=1, a=2),
    "namespace": argparse.Namespace(lr=0.1, keys="mine", items=3),
    "simple namespace": types.SimpleNamespace(a=[1]),
    "path": pathlib.PurePosixPath("a/b"),
    "defaultdict": collections.defaultdict(list, {"a": [1]}),
    "deque": collections.deque([1, 2], maxlen=5),
    "counter": collections.Counter("abca"),
    "datetime": datetime.datetime(2020, 1, 2, tzinfo=datetime.timezone.utc),
    "timedelta": datetime.timedelta(days=3),
    "uuid": uuid.UUID(int=7),
    "decimal": decimal.Decimal("1.5"),
    "fraction": fractions.Fraction(1, 3),
    "enum": Color.RED,
    "class": pathlib.PurePosixPath,
    "function": os.path.join,
    "slots": Slotted(),
    "nested class": Outer.Inner,
    "object of a nested class": inner(),
    "state setter": with_setter(),
    "dict subclass": table(),
    "range": range(1, 10, 2),
    "slice": slice(1, None, 2),
    "ellipsis": ...,
}


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
def test_what_a_pickle_holds_comes_back_equal_and_of_its_type(value, protocol):
    original = pickle.dumps({"first": value, "again": value}, protocol)

    pickled = read(original)
    again = pickle.loads(write(pickled.value, pickled.protocol))

    assert again["first"] == value
    assert type(again["first"]) is type(value)
    assert pickled.hidden_calls == []
    if type(value) not in (bytes, complex, range, slice):
        assert again["first"] is again["again"]


def test_a_partial_comes_back_with_function_and_arguments():
    partial = functools.partial(print, 1, end="")

    again = pickle.loads(write(read(pickle.dumps(partial, 2)).value))

    assert (again.func, again.args, again.keywords) == (print, (1,), {"end": ""})


def test_an_object_that_holds_itself_comes_back_so():
    namespace = argparse.Namespace()
    namespace.me = namespace

    again = pickle.loads(write(read(pickle.dumps(namespace)).value))

    assert again.me is again


def test_the_attributes_of_an_ordered_dict_are_kept():
    state = collections.OrderedDict(w=1)
    state._metadata = collections.OrderedDict(x={"version": 2})

    again = pickle.loads(write(read(pickle.dumps(state, 2)).value))

    assert again._metadata == state._metadata


def test_a_call_whose_result_is_thrown_away_is_reported_and_not_written():
    data = b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00echo\x85R0}."

    pickled = read(data)

    assert [made.__recipe__.function.__qualname__ for made in pickled.hidden_calls] == ["system"]
    assert b"system" not in write(pickled.value)


@pytest.mark.parametrize(
    "unheld",
    [b"cb\nC\nh\x00X\x01\x00\x00\x00s\x86\x81", b"cb\nC\nh\x00X\x01\x00\x00\x00s\x86R}b"],
    ids=["an instance", "a call with a state"],
)
def test_what_only_looks_like_the_setting_of_a_state_stays_a_hidden_call(unheld):
    pickled = read(b"\x80\x02ca\nB\n)Rq\x00" + unheld + b"0.")

    assert len(pickled.hidden_calls) == 1
    assert pickled.value.__recipe__.setter is None


def test_a_long_chain_of_calls_is_described():
    pickled = read(b"\x80\x02cos\nL\n)R" + b")R" * 300 + b"0}.")

    assert describe(pickled.hidden_calls[0]) == "a call of what os.L gave"


REFUSED = {
    "a state on a global": b"\x80\x02cos\nsystem\n}X\x01\x00\x00\x00a" + b"K\x01sb.",
    "items on a global": b"\x80\x02cos\nsystem\nK\x01a.",
    "two states": b"\x80\x02ca\nB\n)R}b}b.",
    "items after the state": b"\x80\x02ca\nB\n)R}bK\x01K\x02s.",
    "members in no set": b"\x80\x04\x8c\x01a\x8c\x01B\x93)R(K\x01\x90.",
    "a method of an ordered dict": b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsK\x01sb.",
    "an attribute without a name": b"\x80\x02ccollections\nOrderedDict\n)R}K\x01K\x02sb.",
    "members of a global": b"\x80\x04\x8c\x01a\x8c\x01B\x93(K\x01\x90.",
    "a global with a line break": b"\x80\x04\x8c\x05os\nxx\x8c\x01y\x93.",
    "a global without a name": b"\x80\x04\x8c\x02os\x8c\x00\x93.",
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED.keys())
def test_what_no_pickler_writes_is_refused_as_unsafe(data):
    with pytest.raises(UnsafePickle):
        read(data)


DAMAGED = {
    "empty": b"",
    "cut off": b"\x80\x02}q\x00X\x05\x00\x00\x00ab",
    "unknown opcode": b"\x80\x02\xff.",
    "stack underflow": b"\x80\x02R.",
    "an extension code": b"\x80\x02\x82\x01.",
    "an unhashable key": b"\x80\x02}]K\x01s.",
    "a state on a list": b"\x80\x02]}X\x01\x00\x00\x00aK\x01sb.",
    "a persistent id": b"\x80\x02K\x01Q.",
    "instances of what is no class": b"\x80\x02K\x01)\x81.",
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_pickle_is_an_error_of_ours(data):
    with pytest.raises(UnreadableCheckpoint):
        read(data)


def test_globals_are_per_load_and_cannot_be_called_afterwards():
    data = pickle.dumps(pathlib.PurePosixPath, 2)

    first, second = read(data).value, read(data).value

    assert isinstance(first, ForeignGlobal)
    assert first is not second
    with pytest.raises(TypeError, match="not imported"):
        first()


def test_an_old_byte_string_that_is_no_utf8_is_read_as_latin_1():
    assert read(b"\x80\x02U\x02\xff\xfe.").value == "\xff\xfe"


def test_writing_leaves_no_module_behind():
    before = set(sys.modules)

    write(read(pickle.dumps(VALUES["namespace"], 2)).value)

    assert set(sys.modules) == before


def test_text_that_looks_like_opcodes_is_left_alone():
    value = {"cos\nsystem\n": "cm__0000000000\n__0000000000\n", "x": argparse.Namespace(a=1)}

    again = pickle.loads(write(read(pickle.dumps(value, 2)).value))

    assert again == value


@pytest.mark.parametrize("character", ["a", "\xe9", "\u20ac", "\ud800"], ids=ascii)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_texts_longer_than_a_frame_are_written_in_place(character, protocol):
    value = ["before", character * 70_000, character * 80_000, "after", argparse.Namespace(a=1)]
    again = read(pickle.dumps(value, protocol))

    assert pickle.loads(write(again.value, protocol)) == value


def test_the_same_value_gives_the_same_bytes():
    pickled = read(pickle.dumps(VALUES["object of a nested class"], 2))

    assert write(pickled.value) == write(pickled.value)


class Node:
    """An object that is in sets, and may hold one."""


def test_objects_of_a_set_are_written_in_the_order_in_which_they_were_read():
    nodes = [Node() for _ in range(8)]
    data = pickle.dumps(
        {"order": nodes, "set": set(nodes), "pairs": {(node, 1) for node in nodes}}, 2
    )

    written = {write(read(data).value) for _ in range(10)}

    assert len(written) == 1
    again = pickle.loads(written.pop())
    assert again["set"] == set(again["order"])


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_set_that_leads_back_to_itself_is_written(protocol):
    parent, child = Node(), Node()
    child.parent, parent.children = parent, {child}

    again = pickle.loads(write(read(pickle.dumps({"child": child}, protocol)).value, protocol))

    (same,) = again["child"].parent.children
    assert same is again["child"]


def test_sets_in_sets_are_written_in_a_time_that_does_not_double_with_each():
    value = frozenset({1})
    for _ in range(60):
        value = frozenset({value})

    assert pickle.loads(write(read(pickle.dumps({"set": value}, 2)).value)) == {"set": value}


def test_what_cannot_be_pickled_is_named():
    with pytest.raises(UnwritableCheckpoint, match="lambda"):
        write({"f": lambda: None})


def test_a_class_of_the_migrations_is_refused():
    local = type("Config", (), {"__module__": "_migrate_ckpt_0123.0001_x"})

    with pytest.raises(UnwritableCheckpoint, match="Config, which is defined in the folder"):
        write({"config": local()})


def test_a_foreign_object_cannot_be_pickled_by_pickle_itself():
    foreign = read(pickle.dumps(VALUES["path"], 2)).value
    assert type(foreign) is ForeignObject

    with pytest.raises(TypeError, match="write_checkpoint"):
        pickle.dumps(foreign)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("innermost", [[], {1}], ids=["a list", "a set"])
def test_what_is_nested_as_deeply_as_is_read_is_written(protocol, innermost):
    value: Any = innermost
    for _ in range(395):
        value = [value]
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10_000)
    try:
        data = pickle._dumps(value, protocol)
        again = read(write(read(data).value, protocol)).value
        while again and type(again) is list:
            (again,) = again
        assert again == innermost
    finally:
        sys.setrecursionlimit(limit)


def test_writing_deeply_leaves_the_recursion_limit_as_it_was():
    before = sys.getrecursionlimit()

    write({"x": {1, 2}}, 4)

    assert sys.getrecursionlimit() == before

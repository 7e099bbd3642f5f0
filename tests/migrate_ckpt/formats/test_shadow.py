"""The check of the opcodes lets pass what picklers write, and knows what each object costs as a key."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from fractions import Fraction
from pathlib import PurePosixPath
from typing import Any

import pytest

from migrate_ckpt.errors import TooLarge, UnreadableCheckpoint, UnsafePickle
from migrate_ckpt.formats.keys import MAX_CHOSEN_KEYS, MAX_KEY_WEIGHT, KeyCheck
from migrate_ckpt.formats.shadow import check_pickle
from migrate_ckpt.formats.shadows import MAX_DEPTH


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


def paths(count: int) -> dict[PurePosixPath, int]:
    return {PurePosixPath(f"data/sets/of/many/parts/{index}.png"): index for index in range(count)}


PASSES = {
    "as deep as is allowed": nested(MAX_DEPTH - 1),
    "as wide as is allowed": {tuple(range(MAX_KEY_WEIGHT - 1)): 1},
    "a wide tuple that is no key": [tuple(range(100_000))],
    "many tuples of small numbers": {(index, -index): None for index in range(20_000)},
    "many long numbers": {index * 0x9E3779B97F4A7C15 % 2**64: None for index in range(20_000)},
    "many fractions": {index / 7: None for index in range(20_000)},
    "many members": {"names": {f"name{index}" for index in range(20_000)}},
    "a large frozenset": frozenset(range(20_000)),
    "an ordered dict by tuples": OrderedDict({("a", index): None for index in range(20_000)}),
    "fractions as keys": {Fraction(1, index): None for index in range(1, 1000)},
    "a chain beside each other": [nested(index) for index in range(1, 50)],
}


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("value", PASSES.values(), ids=PASSES.keys())
def test_what_a_checkpoint_may_hold_passes(value: Any, protocol: int) -> None:
    data = pickle.dumps(value, protocol)

    assert check_pickle(data) == len(data)


def test_objects_with_many_arguments_are_fine_as_keys_in_any_number() -> None:
    data = pickle.dumps(paths(20_000), 2)

    assert check_pickle(data) == len(data)


def test_the_end_is_found_where_more_follows() -> None:
    assert check_pickle(b"\x80\x02}.\x80\x02]..") == 4


REFUSED = {
    "deeper": (nested(MAX_DEPTH + 1), TooLarge),
    "a wider key": ({tuple(range(MAX_KEY_WEIGHT)): 1}, UnsafePickle),
    "a wider key inside a key": ({(1, tuple(range(MAX_KEY_WEIGHT - 1))): 1}, UnsafePickle),
    "a longer number as key": ({2**300: 1}, UnsafePickle),
    "a wide member": ({tuple(range(MAX_KEY_WEIGHT))}, UnsafePickle),
    "too many tuples of fractions": (
        {(index / 7, 1): None for index in range(MAX_CHOSEN_KEYS + 1)},
        TooLarge,
    ),
    "too many frozensets": (
        {frozenset((index,)): None for index in range(MAX_CHOSEN_KEYS + 1)},
        TooLarge,
    ),
    "numbers of one hash": ({index * (2**61 - 1): None for index in range(1, 200)}, TooLarge),
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(("value", "error"), REFUSED.values(), ids=REFUSED.keys())
def test_what_would_hurt_the_unpickler_is_refused(
    value: Any, error: type[Exception], protocol: int
) -> None:
    # A set of protocol 2 comes as a call, whose members are checked when it is answered.
    if isinstance(value, set):
        protocol = 4

    with pytest.raises(error):
        check_pickle(pickle.dumps(value, protocol))


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_pickle_that_is_cut_off_is_refused_wherever_that_is(cut: int) -> None:
    data = pickle.dumps({"weights": [1.5, (2, "three")], "bytes": b"abc", "big": 2**70}, 4)

    with pytest.raises(UnreadableCheckpoint):
        check_pickle(data[:-cut])


MEMBERS = {
    "a wide tuple": [tuple(range(MAX_KEY_WEIGHT))],
    "a tuple doubled": [(((1,) * 8,) * 8,) * 8],
    "a long number": [2**300],
    "a long number in a frozenset": [frozenset((1, 2**300))],
    "a wide frozenset": [frozenset(range(MAX_KEY_WEIGHT))],
}


@pytest.mark.parametrize("members", MEMBERS.values(), ids=MEMBERS.keys())
def test_members_of_a_called_set_may_not_weigh_more_than_keys(members: list[Any]) -> None:
    with pytest.raises(UnsafePickle):
        KeyCheck().check(members)


def test_members_of_all_called_sets_are_counted_together() -> None:
    keys = KeyCheck()
    half = [complex(index, 1) for index in range(MAX_CHOSEN_KEYS // 2 + 1)]
    keys.check(half)

    with pytest.raises(TooLarge):
        keys.check(half)

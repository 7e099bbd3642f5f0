"""Runs of entries that are passed over at once leave the same shadows as each opcode by itself."""

from __future__ import annotations

import pickle
import random
import struct
from typing import Any

import pytest

from migrate_ckpt.errors import MigrateCkptError
from migrate_ckpt.formats import shadow
from migrate_ckpt.formats.shadow import check_pickle
from migrate_ckpt.formats.shadow_runs import MAX_KEY_BYTES, EntryRuns
from migrate_ckpt.formats.shadows import Shadows


class NoRuns(EntryRuns):
    def take(self, position: int, length: int) -> tuple[int, list[int]]:
        return position, []


def outcome(data: bytes) -> Any:
    shadows = Shadows(data)
    try:
        end = shadow._follow(shadows)
    except (MigrateCkptError, IndexError, struct.error) as error:
        return type(error)
    return end, shadows.stack, shadows.marks, shadows.memo, shadows.object_bytes


def both(data: bytes, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    fast = outcome(data)
    with monkeypatch.context() as patched:
        patched.setattr(shadow, "EntryRuns", NoRuns)
        return fast, outcome(data)


def taken(data: bytes, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many entries are passed over in runs."""
    counts = []
    take = EntryRuns.take

    def counted(runs: EntryRuns, position: int, length: int) -> tuple[int, list[int]]:
        end, pushed = take(runs, position, length)
        counts.append(len(pushed) // 2)
        return end, pushed

    with monkeypatch.context() as patched:
        patched.setattr(EntryRuns, "take", counted)
        check_pickle(data)
    return sum(counts)


def entries(values: Any) -> bytes:
    return pickle.dumps({f"key.{index:06d}": value for index, value in enumerate(values)}, 2)


VALUES = {
    "one byte": [index % 256 for index in range(2000)],
    "two bytes": [300 + index for index in range(2000)],
    "four bytes": [1 << 20 | index for index in range(2000)],
    "negative": [-1 - index for index in range(2000)],
    "fractions": [index + 0.5 for index in range(2000)],
    "nothing": [None, True, False] * 700,
    "mixed": [1, 2.5, None, 70_000, 400] * 400,
    "texts": ["a", "b"] * 500,
    "lists": [[] for _ in range(500)],
    "nine bytes": [1 << 62] * 500,
}


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES.keys())
def test_runs_leave_the_shadows_that_each_opcode_leaves(values, monkeypatch):
    fast, slow = both(entries(values), monkeypatch)

    assert fast == slow
    assert isinstance(fast, tuple)


@pytest.mark.parametrize("kind", ["four bytes", "fractions", "nothing"])
def test_most_entries_are_in_a_run(kind, monkeypatch):
    # Not those whose index has one byte.
    assert taken(entries(VALUES[kind]), monkeypatch) > len(VALUES[kind]) - 260


def test_a_text_that_only_looks_like_a_run_is_none(monkeypatch):
    inner = b"X\1\0\0\0ar\1\0\0\0K\1" * 3
    data = b"\x80\2]q\0(X\1\0\0\0br\1\0\0\0X\1\0\0\0cr\2\0\0\0B" + struct.pack("<I", len(inner))
    data += inner + b"e."

    fast, slow = both(data, monkeypatch)

    assert fast == slow
    assert isinstance(fast, tuple)


def test_the_values_of_a_run_may_turn_out_to_be_keys(monkeypatch):
    entry = b"X\1\0\0\0ar\1\0\0\0G" + b"\1" * 8
    data = b"\x80\2}(N" + entry * 20 + b"Nu."

    fast, slow = both(data, monkeypatch)

    assert fast == slow
    assert isinstance(fast, tuple)


@pytest.mark.parametrize("index", [0, 1, 200, 255, 256, 700, 5000, 1 << 16, 1 << 24, (1 << 32) - 1])
def test_an_index_beyond_the_pickle_is_refused_in_a_run_too(index, monkeypatch):
    put = b"r" + struct.pack("<I", index)
    data = b"\x80\2}(" + (b"X\1\0\0\0a" + put + b"K\1") * 70 + b"u."

    fast, slow = both(data, monkeypatch)

    assert fast == slow
    assert isinstance(fast, tuple) == (index < len(data))


@pytest.mark.parametrize("length", [0, 1, 63, MAX_KEY_BYTES, MAX_KEY_BYTES + 1, 255, 256])
def test_keys_of_any_length_are_passed_over_alike(length, monkeypatch):
    key = b"X" + struct.pack("<I", length) + b"r" * length
    data = b"\x80\2}(" + (key + b"r\7\0\0\0N") * 20 + b"u."

    fast, slow = both(data, monkeypatch)

    assert fast == slow
    assert (taken(data, monkeypatch) > 0) == (length <= MAX_KEY_BYTES)


@pytest.mark.parametrize("seed", range(4))
def test_a_changed_byte_changes_both_walks_alike(seed, monkeypatch):
    chosen = random.Random(seed)
    data = entries([*VALUES["one byte"][:40], *VALUES["fractions"][:300], *VALUES["mixed"][:40]])
    seen = set()

    for _ in range(200):
        changed = bytearray(data)
        place = chosen.randrange(2, len(data))
        changed[place] = chosen.choice((chosen.randrange(256), data[chosen.randrange(len(data))]))
        fast, slow = both(bytes(changed), monkeypatch)
        assert fast == slow, place
        seen.add(isinstance(fast, tuple))

    assert seen == {True, False}

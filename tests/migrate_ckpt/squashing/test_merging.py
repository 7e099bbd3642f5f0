"""Which operations become one, and which stay as they are."""

from __future__ import annotations

import re

import pytest

from migrate_ckpt.operations import (
    Operation,
    add,
    add_prefix,
    cast,
    concat,
    drop,
    drop_value,
    normalise,
    reindex,
    rename,
    rename_class,
    rename_value,
    set_value,
    split,
    stack,
    strip_prefix,
    transpose,
    unstack,
)
from migrate_ckpt.operations.renaming import Rename
from migrate_ckpt.squashing.merging import merge, templates_left_out

A_TO_B, B_TO_C = rename("a", "b"), rename("b", "c")


@pytest.mark.parametrize(
    ("operations", "merged"),
    [
        ([A_TO_B, B_TO_C], [rename("a", "c")]),
        ([A_TO_B, rename("b", "a")], []),
        ([A_TO_B, drop("x"), B_TO_C], [rename("a", "c"), drop("x")]),
        ([A_TO_B, drop("b")], [drop("a")]),
        (
            [drop("a"), cast("float16", keys="x"), drop("b")],
            [drop("a", "b"), cast("float16", keys="x")],
        ),
        ([rename("{n}.a", "{n}.b"), rename("{m}.b", "c.{m}")], [rename("{n}.a", "c.{n}")]),
        (
            [rename({"a": "b", "c": "d"}), rename({"b": "c"})],
            [rename({"a": "c", "c": "d"})],
        ),
        ([rename("b", "a"), rename({"a": "c", "c": "a"})], [rename({"b": "c", "c": "a"})]),
        ([add("a", 1), drop("a")], []),
        ([add("a", 1), A_TO_B], [add("b", 1)]),
        ([transpose("a"), transpose("a")], []),
        ([split("a", ["b", "c"]), concat(["b", "c"], "a")], []),
        ([reindex("l.{i}", shift=2), reindex("l.{i}", shift=-2)], []),
        ([reindex("l.{i}", shift=2), reindex("l.{i}", shift=1)], [reindex("l.{i}", shift=3)]),
        ([reindex("l.{i}", {0: 1, 1: 0}), reindex("l.{i}", {1: 0, 0: 1})], []),
        ([rename_value("h.a", "b"), rename_value("h.b", "c")], [rename_value("h.a", "c")]),
        ([rename_value("h.a", "b"), drop_value("h.b")], [drop_value("h.a")]),
        ([set_value("h.a", 1), drop("x"), set_value("h.a", 2)], [set_value("h.a", 2), drop("x")]),
        ([A_TO_B, B_TO_C, rename("c", "a")], []),
        (
            [A_TO_B, rename_value("lr", "rate"), B_TO_C],
            [rename("a", "c"), rename_value("lr", "rate")],
        ),
    ],
    ids=lambda operations: " ".join(map(str, operations)) if isinstance(operations, list) else None,
)
def test_become_fewer(operations: list[Operation], merged: list[Operation]) -> None:
    assert merge(operations) == merged


@pytest.mark.parametrize(
    "operations",
    [
        [A_TO_B, rename("x", "y")],
        [A_TO_B, rename("x", "a")],
        [A_TO_B, transpose("b"), B_TO_C],
        [A_TO_B, drop("c"), B_TO_C],
        [A_TO_B, normalise(), B_TO_C],
        [A_TO_B, rename("{k}", "z.{k}")],
        [rename("a", "b", missing="skip"), B_TO_C],
        [rename("a", "b", missing="skip"), rename("b", "a", missing="skip")],
        [rename("a", "b", section="ema"), B_TO_C],
        [concat(["b", "c"], "a"), split("a", ["b", "c"])],
        [cast("float16"), cast("float32")],
        [add("a", 1, existing="skip"), drop("a")],
        [drop("a"), add("a", 1)],
        [set_value("h", {}), rename_value("h.a", "b"), set_value("h", {})],
        [rename_value("h.a", "b", missing="skip"), drop_value("h.b", missing="skip")],
        [drop("a"), rename_value("x", "a"), drop("a")],
        [A_TO_B, rename_value("c", "d"), B_TO_C],
        [A_TO_B, rename_value("c.x", "d"), B_TO_C],
        [A_TO_B, drop_value("c"), B_TO_C],
        [set_value("x", 1), A_TO_B, set_value("x", {})],
        [drop("a"), add("x", 1), drop("b")],
        [rename("a.0", "b"), rename({"b": "c", "a.{i}": "d.{i}"})],
        [Rename(((re.compile("(.)a"), r"\1b"), ("x", "y"))), rename({"y": "z", "0b": "c"})],
        [
            rename("a.{i}", "b.{i}"),
            cast("float16", keys="x"),
            rename("d.{i}", "b.{i}"),
            rename("b.{i}", "c.{i}"),
        ],
        [transpose("b.{i}"), rename("a.{i}", "b.{i}"), rename("b.{i}", "c.{i}")],
        [strip_prefix("module"), add_prefix("module")],
        [rename_class("p.A", "p.B"), rename_class("p.B", "p.A")],
        [rename_class("p.*", "q.*"), rename_class("q.*", "p.*")],
        [reindex("l.{i}", {0: 1}), reindex("l.{i}", {1: 0})],
    ],
    ids=lambda operations: " ".join(map(str, operations)),
)
def test_stay_as_they_are(operations: list[Operation]) -> None:
    assert merge(operations) == operations


@pytest.mark.parametrize(
    ("operations", "left_out"),
    [
        ([rename("a.{i}", "b.{i}"), rename("b.{j}", "c.{j}")], ["b.{i}"]),
        ([rename("a.{i}", "b.{i}"), rename("b.{i}", "a.{i}")], ["b.{i}"]),
        ([rename("a.{i}", "b.{i}"), drop("b.{i}")], ["b.{i}"]),
        ([stack("e.{i}", "e.all", over="i"), unstack("e.all", "e.{i}", over="i")], []),
        ([rename("a.{i}", "b.{i}"), transpose("b.{i}")], []),
        ([A_TO_B, B_TO_C], []),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_templates_that_are_taken_to_give_new_names_are_told(
    operations: list[Operation], left_out: list[str]
) -> None:
    assert templates_left_out(operations, merge(operations)) == left_out

"""Laws of squashing: fewer operations make the same of whatever the many run on."""

from __future__ import annotations

import copy
from typing import Any, get_args

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from migrate_ckpt.comparison import find_unlike
from migrate_ckpt.errors import NotInvertible, OperationError
from migrate_ckpt.foreign import ForeignGlobal
from migrate_ckpt.operations import (
    Operation,
    add,
    add_prefix,
    cast,
    concat,
    drop,
    drop_value,
    permute_rows,
    reindex,
    rename,
    rename_class,
    rename_value,
    set_value,
    split,
    stack,
    strip_prefix,
    tie,
    transpose,
    unstack,
)
from migrate_ckpt.operations.patterns import match
from migrate_ckpt.operations.state_dict_operation import Missing
from migrate_ckpt.squashing.merging import merge, templates_left_out

KEYS = ["a", "b", "c", "d", "e"]
LAYERS = ["l.0.a", "l.1.b", "m.a", "m.l.1.b"]
NAMES = ["lr", "rate", "eps"]
CLASSES = ["p.A", "p.B", "q.A"]

key = st.sampled_from(KEYS)
name = st.sampled_from(NAMES)
missing: st.SearchStrategy[Missing] = st.sampled_from(get_args(Missing))
two = st.lists(key, min_size=2, max_size=2, unique=True)
two_names = st.lists(name, min_size=2, max_size=2, unique=True)
mapping = st.dictionaries(key, key, min_size=1, max_size=3).filter(
    lambda pairs: len(set(pairs.values())) == len(pairs)
)
OPERATIONS: st.SearchStrategy[Operation] = st.one_of(
    st.tuples(two, missing).map(lambda pair: rename(*pair[0], missing=pair[1])),
    mapping.map(rename),
    st.tuples(key, missing).map(lambda pair: drop(pair[0], missing=pair[1])),
    key.map(lambda k: add(k, 1.0, shape=[2, 2])),
    key.map(transpose),
    key.map(lambda k: permute_rows(k, [1, 0])),
    key.map(lambda k: cast("float64", keys=k)),
    st.lists(key, min_size=3, max_size=3, unique=True).map(lambda keys: split(keys[0], keys[1:])),
    st.lists(key, min_size=3, max_size=3, unique=True).map(lambda keys: concat(keys[1:], keys[0])),
    st.lists(key, min_size=3, max_size=3, unique=True).map(
        lambda keys: concat(keys[1:], keys[0], sizes=[2, 2])
    ),
    two.map(lambda keys: add(keys[0], copy_of=keys[1])),
    two.map(lambda keys: tie(*keys)),
    st.tuples(two_names, missing).map(
        lambda pair: rename_value(f"hyper.{pair[0][0]}", pair[0][1], missing=pair[1])
    ),
    st.tuples(name, missing).map(lambda pair: drop_value(f"hyper.{pair[0]}", missing=pair[1])),
    st.sampled_from([strip_prefix("m"), add_prefix("m")]),
    st.sampled_from([rename_class("p.*", "q.*"), rename_class("q.*", "p.*")]),
    st.lists(st.sampled_from(CLASSES), min_size=2, max_size=2, unique=True).map(
        lambda classes: rename_class(*classes)
    ),
    st.sampled_from([{0: 1}, {1: 0}, {0: 1, 1: 0}]).map(lambda to: reindex("l.{i}", to)),
    st.sampled_from([1, -1]).map(lambda shift: reindex("l.{i}", shift=shift)),
    st.tuples(name, st.integers(0, 3)).map(lambda pair: set_value(f"hyper.{pair[0]}", pair[1])),
)

few = st.sampled_from(KEYS[:3])
two_of_few = st.lists(few, min_size=2, max_size=2, unique=True)
FLAT_OPERATIONS: st.SearchStrategy[Operation] = st.one_of(
    two_of_few.map(lambda keys: rename(*keys)),
    few.map(drop),
    two_of_few.map(lambda keys: rename_value(*keys)),
    few.map(lambda k: add(k, 1.0)),
    few.map(drop_value),
    st.tuples(few, st.sampled_from([1, {}])).map(lambda pair: set_value(*pair)),
)

group = st.sampled_from(["a", "b", "c"])
two_groups = st.lists(group, min_size=2, max_size=2, unique=True)
TEMPLATES: st.SearchStrategy[Operation] = st.one_of(
    two_groups.map(lambda names: rename(f"{names[0]}.{{i}}", f"{names[1]}.{{i}}")),
    group.map(lambda name: drop(f"{name}.{{i}}")),
    group.map(lambda name: transpose(f"{name}.{{i}}")),
    group.map(lambda name: stack(f"{name}.{{i}}", f"{name}.all", over="i")),
    group.map(lambda name: unstack(f"{name}.all", f"{name}.{{i:int}}", over="i")),
    two_groups.map(lambda names: rename(f"{names[0]}.0", f"{names[1]}.0")),
    group.map(lambda name: drop(f"{name}.1")),
    group.map(lambda name: add(f"{name}.1", 1.0, shape=[2, 2])),
)
NUMBERED = [f"{name}.{number}" for name in "abc" for number in range(2)]


def there_and_back(operation: Operation) -> list[Operation]:
    try:
        return [operation, *operation.declared_inverse()]
    except NotInvertible:
        return [operation]


def renamed_and_dropped(names: list[str], missing: Missing) -> list[Operation]:
    old, new = names
    if old in KEYS:
        return [rename(old, new, missing=missing), drop(new, missing=missing)]
    return [
        rename_value(f"hyper.{old}", new, missing=missing),
        drop_value(f"hyper.{new}", missing=missing),
    ]


LISTS = st.lists(
    st.one_of(
        OPERATIONS.map(lambda operation: [operation]),
        OPERATIONS.map(there_and_back),
        st.builds(renamed_and_dropped, two | two_names, missing),
    ),
    min_size=1,
    max_size=10,
).map(lambda lists: [operation for each in lists for operation in each])


def checkpoint(present: list[str], seed: int) -> dict[str, Any]:
    return {
        "state_dict": {**tensors(present, seed), "z": torch.ones(1)},
        "hyper": {"lr": 0.1, "eps": 2},
        "classes": {name: ForeignGlobal.named(*name.split(".")) for name in CLASSES},
    }


def tensors(present: list[str], seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {k: torch.randn(2, 2, generator=generator) for k in present}


def applied(operations: list[Operation], ckpt: Any) -> tuple[list[Operation], Any]:
    """The operations up to the first that fails, and what they make."""
    done: list[Operation] = []
    for operation in operations:
        try:
            ckpt = operation(ckpt)
        except OperationError:
            break
        done.append(operation)
    return done, ckpt


def check(operations: list[Operation], ckpt: dict[str, Any]) -> None:
    done, by_many = applied(operations, copy.deepcopy(ckpt))

    merged = merge(done)

    fewer, by_few = applied(merged, copy.deepcopy(ckpt))
    assert fewer == merged
    assert len(merged) <= len(done)
    assert find_unlike(by_many, by_few) == []


@settings(max_examples=400, deadline=None)
@given(
    LISTS,
    st.lists(key | st.sampled_from(LAYERS), unique=True, max_size=5),
    st.integers(0, 2**16),
)
def test_merged_operations_make_the_same(
    operations: list[Operation], present: list[str], seed: int
) -> None:
    check(operations, checkpoint(present, seed))


@settings(max_examples=400, deadline=None)
@given(st.lists(FLAT_OPERATIONS, max_size=6), st.lists(few, unique=True, min_size=1))
def test_keys_of_a_flat_state_dict_are_values_too(
    operations: list[Operation], present: list[str]
) -> None:
    check(operations, tensors(present, 0))


@settings(max_examples=400, deadline=None)
@given(
    st.lists(TEMPLATES, max_size=5),
    st.lists(st.sampled_from(NUMBERED), unique=True, min_size=1),
)
def test_templates_give_names_where_no_others_were(
    operations: list[Operation], present: list[str]
) -> None:
    ckpt = {**tensors(present, 0), "z": torch.ones(1)}
    done, _ = applied(operations, copy.deepcopy(ckpt))
    left_out = templates_left_out(done, merge(done))
    assume(not any(match(template, key) is not None for template in left_out for key in ckpt))

    check(operations, ckpt)


@given(LISTS)
def test_merging_again_changes_nothing(operations: list[Operation]) -> None:
    merged = merge(operations)

    assert merge(merged) == merged

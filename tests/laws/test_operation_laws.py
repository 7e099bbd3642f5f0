"""Laws of the operations, on generated state dicts with ties, views, versions and keys in any order."""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from migrate_ckpt import NotInvertible, OperationError, operations
from migrate_ckpt.operations import (
    Operation,
    add,
    add_prefix,
    cast,
    concat,
    drop,
    merge_qkv,
    pad_rows,
    permute,
    permute_rows,
    reindex,
    rename,
    reshape,
    set_value,
    split,
    split_qkv,
    stack,
    strip_prefix,
    tie,
    transpose,
    trim_rows,
    unstack,
    untie,
)
from migrate_ckpt.operations.reshaping import Concat

DTYPES = [torch.float32, torch.bfloat16, torch.int64, torch.bool]
PARTS = [f"layers.{{i}}.attn.{name}.weight" for name in "qkv"]
FUSED = "layers.{i}.attn.qkv.weight"

OPERATIONS: list[Operation] = [
    rename("head.weight", "classifier.scale", missing="skip"),
    rename({"head.weight": "head.bias", "head.bias": "head.weight"}, missing="skip"),
    rename("layers.{i}.norm.{name}", "blocks.{i}.ln.{name}", missing="skip"),
    rename(re.compile(r"(.*)\.norm\.(\w+)"), r"norms.\1.\2", missing="skip"),
    strip_prefix("module", "_orig_mod", missing="skip"),
    strip_prefix("attn", anywhere=True, missing="skip"),
    strip_prefix("my_module"),
    add_prefix("model.inner", missing="skip"),
    reindex("layers.{i}", shift=2, missing="skip"),
    reindex("layers.{i}", {0: 1, 1: 0}, missing="skip"),
    split(FUSED, PARTS, missing="skip"),
    split("layers.{i}.norm.weight", ["layers.{i}.x", "n.{i}.y"], sizes=[1, 5], missing="skip"),
    concat(PARTS, FUSED, missing="skip"),
    concat(PARTS, FUSED, sizes=[6, 6, 6], missing="skip"),
    concat(list(reversed(PARTS)), "layers.{i}.qkv", dim=-1, missing="skip"),
    cast("float64", missing="skip"),
    cast(torch.float32, keys=["head.weight", "layers.{i}.norm.{name}"], missing="skip"),
    add("extra.weight", 0.5, shape=[2, 3], dtype="float16"),
    add("steps", [1, 2, 3]),
    add("layers.{i}.norm.beta", 1, like="layers.{i}.norm.weight", missing="skip"),
    add("layers.{i}.copy", copy_of="layers.{i}.norm.weight", missing="skip"),
    transpose(["head.weight", FUSED], missing="skip"),
    permute("layers.{i}.norm.{name}", [-1, 0], missing="skip"),
    reshape(re.compile(r"(head|pos).*"), [4, -1], missing="skip"),
    reshape("layers.{i}.norm.bias", [3, 3, 2, 2], missing="skip"),
    permute_rows(FUSED, [5, 0, 4, 1, 3, 2], missing="skip"),
    permute_rows("head.{name}", [1, 2, 3, 4, 5, 0], dim=-1, missing="skip"),
    pad_rows("head.{name}", 3, missing="skip"),
    pad_rows(["pos", "layers.{i}.norm.{name}"], 1, at="start", dim=1, value=1, missing="skip"),
    trim_rows("head.weight", 6, missing="skip"),
    split_qkv(FUSED, PARTS, heads=1, missing="skip"),
    split_qkv(FUSED, PARTS, heads=4, kv_heads=1, layout="grouped", missing="skip"),
    merge_qkv(PARTS, FUSED, heads=2, missing="skip"),
    merge_qkv(PARTS, FUSED, heads=3, layout="grouped", missing="skip"),
    stack("layers.{i}.norm.{name}", "norms.{name}", over="i", missing="skip"),
    stack("layers.{i}.attn.{part}.weight", "attn.{i}", over="part", dim=-1, missing="skip"),
    unstack("layers.{i}.norm.{name}", "rows.{i}.{row}.{name}", over="row", missing="skip"),
    unstack("head.{name}", "columns.{name}.{column}", over="column", dim=1, missing="skip"),
    tie("head.tied", "head.weight", missing="skip"),
    tie("layers.{i}.norm.bias", "layers.{i}.norm.weight", missing="skip"),
    untie("layers.{i}.norm.{name}", "pos", missing="skip"),
]

# Those in one tuple are there together: a group of which a part is missing is refused.
GROUPS: list[tuple[str, ...]] = [
    ("head.weight", "head.bias"),
    ("pos",),
    ("my_module.fc.weight",),
    ("module.x.weight",),
    ("module._orig_mod.y.weight",),
    *((f"layers.{i}.norm.{name}",) for i in range(3) for name in ("weight", "bias")),
    *((f"layers.{i}.attn.qkv.weight",) for i in (0, 1)),
    *(tuple(f"layers.{i}.attn.{name}.weight" for name in "qkv") for i in (2, 10)),
]
MODULES = sorted(
    {key.rpartition(".")[0] for group in GROUPS for key in group} | {"layers", "module", "relu"}
)


@st.composite
def state_dicts(draw: st.DrawFn, *, with_all: bool = False) -> OrderedDict[str, Any]:
    """A state dict of 6 by 6 tensors, views of larger ones and ties, in any order, with versions for some modules."""
    groups = draw(st.lists(st.sampled_from(GROUPS), unique=True, min_size=1))
    keys = [key for group in (GROUPS if with_all else groups) for key in group]
    joined = draw(st.sampled_from(DTYPES))
    state_dict: OrderedDict[str, Any] = OrderedDict()
    for key in draw(st.permutations(keys)):
        tie = draw(st.sampled_from([None, None, *state_dict]))
        if tie is not None and (".attn." not in key or state_dict[tie].dtype == joined):
            state_dict[key] = state_dict[tie]
        else:
            state_dict[key] = draw(tensors(joined if ".attn." in key else None))
    if draw(st.booleans()):
        state_dict._metadata = OrderedDict(  # type: ignore[attr-defined]
            (module, {"version": draw(st.integers(1, 9))})
            for module in draw(st.lists(st.sampled_from(MODULES), unique=True))
        )
    return state_dict


@st.composite
def tensors(draw: st.DrawFn, dtype: torch.dtype | None) -> torch.Tensor:
    dtype = dtype or draw(st.sampled_from(DTYPES))
    base = torch.arange(72).reshape(12, 6) * draw(st.integers(1, 5))
    view = draw(st.sampled_from([base[:6], base[6:], base[::2], base[:6].T]))
    tensor = view.to(dtype) if draw(st.booleans()) else view.to(dtype).contiguous().clone()
    return torch.nn.Parameter(tensor) if dtype.is_floating_point and draw(st.booleans()) else tensor


def bits(tensor: torch.Tensor) -> Hashable:
    return (
        type(tensor),
        tensor.dtype,
        tuple(tensor.shape),
        tensor.requires_grad,
        tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes(),
    )


def ties(state_dict: Mapping[str, torch.Tensor]) -> list[list[str]]:
    """The groups of keys that show the same memory."""
    groups: dict[Hashable, list[str]] = {}
    for key, value in state_dict.items():
        place = value.untyped_storage().data_ptr(), value.storage_offset(), value.stride()
        groups.setdefault((place, tuple(value.shape)), []).append(key)
    return [group for group in groups.values() if len(group) > 1]


def untouched(groups: list[list[str]], touched: set[str]) -> set[frozenset[str]]:
    left = (frozenset(group) - touched for group in groups)
    return {group for group in left if len(group) > 1}


def facts(state_dict: OrderedDict[str, Any]) -> Any:
    versions = getattr(state_dict, "_metadata", None)
    return (
        [(key, bits(value)) for key, value in state_dict.items()],
        None if versions is None else list(versions.items()),
    )


def apply(operation: Operation, ckpt: dict[str, Any]) -> dict[str, Any]:
    """Apply an operation; leaves out an example for which it is refused, once nothing has changed."""
    before = facts(ckpt["state_dict"])
    try:
        return operation(ckpt)  # type: ignore[return-value]
    except OperationError:
        assert facts(ckpt["state_dict"]) == before
        assume(False)
        raise


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
@settings(max_examples=30, deadline=None)
@given(state_dict=state_dicts())
def test_operation_and_its_inverse_are_the_identity(
    operation: Operation, state_dict: OrderedDict[str, Any]
) -> None:
    ckpt: dict[str, Any] = {"epoch": 1, "state_dict": state_dict}
    before, tied = facts(state_dict), ties(state_dict)
    touched = {path[-1] for path in _reads(operation, ckpt)}
    inverse = _inverse(operation, ckpt)

    apply(operation, ckpt)
    for step in inverse:
        step(ckpt)

    assert facts(ckpt["state_dict"]) == before
    assert ckpt["state_dict"] is state_dict
    # What is made anew is no longer tied to what was not.
    assert untouched(ties(state_dict), touched) == untouched(tied, touched)


GIVES_UP = ("cast", "reshape", "trim_rows", "tie", "untie", "strip_prefix")


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
@settings(max_examples=30, deadline=None)
@given(state_dict=state_dicts())
def test_declared_inverse_gives_what_the_operation_makes_the_same_of(
    operation: Operation, state_dict: OrderedDict[str, Any]
) -> None:
    gives_up = operation.verb in GIVES_UP and operation.missing == "skip"  # type: ignore[attr-defined]
    is_joined = type(operation) is Concat and operation.sizes is None
    if gives_up or is_joined or str(operation).startswith("rename(re.compile"):
        with pytest.raises(NotInvertible):
            operation.declared_inverse()
        return
    made = apply(operation, {"state_dict": state_dict})["state_dict"]
    before = {key: bits(value)[1:3] + bits(value)[4:] for key, value in made.items()}  # type: ignore[index]

    for step in operation.declared_inverse():
        apply(step, {"state_dict": made})
    apply(operation, {"state_dict": made})

    assert {key: bits(value)[1:3] + bits(value)[4:] for key, value in made.items()} == before  # type: ignore[index]


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
@settings(max_examples=30, deadline=None)
@given(state_dict=state_dicts())
def test_result_on_meta_tensors_has_the_structure_of_the_real_one(
    operation: Operation, state_dict: OrderedDict[str, Any]
) -> None:
    on_meta = OrderedDict((key, value.detach().to("meta")) for key, value in state_dict.items())
    real = apply(operation, {"state_dict": state_dict})["state_dict"]

    planned = operation({"state_dict": on_meta})["state_dict"]

    def structure(items: Mapping[str, Any]) -> list[Any]:
        return [(key, value.dtype, tuple(value.shape)) for key, value in items.items()]

    assert structure(planned) == structure(real)


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
@settings(max_examples=30, deadline=None)
@given(state_dict=state_dicts())
def test_what_is_not_read_is_the_same_object_and_what_is_made_holds_no_more_than_it_shows(
    operation: Operation, state_dict: OrderedDict[str, Any]
) -> None:
    before = {id(value): value for value in state_dict.values()}

    after = apply(operation, {"state_dict": state_dict})["state_dict"]

    for value in after.values():
        if id(value) not in before:
            assert value.untyped_storage().nbytes() == value.numel() * value.element_size()
            assert value.is_contiguous() or value.numel() == 36


BY_HAND: dict[str, tuple[Operation, Callable[[dict[str, Any]], object]]] = {
    "rename": (
        rename("head.weight", "out.weight"),
        lambda w: w.update({"out.weight": w.pop("head.weight")}),
    ),
    "template": (
        rename("layers.{i}.norm.{n}", "layers.{i}.ln.{n}"),
        lambda w: _rekey(w, lambda key: re.sub(r"^(layers\.\d+)\.norm\.", r"\1.ln.", key)),
    ),
    "strip_prefix": (
        strip_prefix("module", "_orig_mod"),
        lambda w: _rekey(w, lambda key: re.sub(r"^(module\.|_orig_mod\.)+", "", key)),
    ),
    "add_prefix": (add_prefix("model."), lambda w: _rekey(w, lambda key: f"model.{key}")),
    "drop": (drop("head.bias"), lambda w: w.pop("head.bias")),
    "reindex": (
        reindex("layers.{i}", shift=1),
        lambda w: _rekey(
            w, lambda key: re.sub(r"^layers\.(\d+)", lambda m: f"layers.{int(m[1]) + 1}", key)
        ),
    ),
    "split": (
        split("layers.0.attn.qkv.weight", ["q", "k", "v"], dim=1),
        lambda w: w.update(
            zip("qkv", w.pop("layers.0.attn.qkv.weight").detach().chunk(3, dim=1), strict=True)
        ),
    ),
    "concat": (
        concat([f"layers.2.attn.{n}.weight" for n in "qkv"], "qkv", dim=1),
        lambda w: w.update(
            qkv=torch.cat([w.pop(f"layers.2.attn.{n}.weight").detach() for n in "qkv"], dim=1)
        ),
    ),
    "cast": (
        cast("float16"),
        lambda w: w.update({k: v.half() for k, v in w.items() if v.is_floating_point()}),
    ),
    "add": (add("new", 3.0, shape=[2]), lambda w: w.update(new=torch.full((2,), 3.0))),
}


@pytest.mark.parametrize(("operation", "by_hand"), BY_HAND.values(), ids=BY_HAND.keys())
@settings(max_examples=30, deadline=None)
@given(state_dict=state_dicts(with_all=True))
def test_operation_does_what_the_same_change_does_by_hand(
    operation: Operation,
    by_hand: Callable[[dict[str, Any]], object],
    state_dict: OrderedDict[str, Any],
) -> None:
    expected: dict[str, Any] = dict(state_dict)
    after = apply(operation, {"state_dict": copy.copy(state_dict)})["state_dict"]
    by_hand(expected)

    assert (
        {k: bits(v)[1:3] + bits(v)[4:] for k, v in after.items()}
        == {  # type: ignore[index]
            k: bits(v)[1:3] + bits(v)[4:]  # type: ignore[index]
            for k, v in expected.items()
        }
    )


def _rekey(weights: dict[str, Any], name: Callable[[str], str]) -> None:
    items = {name(key): value for key, value in weights.items()}
    weights.clear()
    weights.update(items)


def _inverse(operation: Operation, ckpt: dict[str, Any]) -> tuple[Operation, ...]:
    try:
        return operation.inverse(ckpt)
    except NotInvertible:
        raise AssertionError("these can all be undone") from None
    except OperationError:
        assume(False)
        raise


def _reads(operation: Operation, ckpt: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
    try:
        return operation.reads(ckpt)
    except OperationError:
        assume(False)
        raise


INFINITE = float("inf")
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text() | st.floats(allow_nan=False), inner, max_size=3)
    ),
)
"""What `repr` alone writes wrongly, such as infinities, and what it writes rightly; a NaN equals nothing."""
WITH_VALUES: list[Operation] = [
    add("mask", -INFINITE, shape=[2, 3]),
    add("steps", [[1.0, INFINITE], [-INFINITE, 0.0]]),
    pad_rows("mask", 3, value=-INFINITE),
    set_value("a.b", {"betas": (INFINITE,), -INFINITE: [(), [-INFINITE]]}),
]


def read_back(written: str) -> Any:
    names = {name: getattr(operations, name) for name in operations.__all__}
    return eval(written, {"re": re, **names})


@pytest.mark.parametrize("operation", [*OPERATIONS, *WITH_VALUES], ids=str)
def test_what_is_written_of_an_operation_makes_it_again(operation: Operation) -> None:
    assert read_back(operation.written()) == operation


@given(value=VALUES)
def test_what_is_written_of_a_value_makes_it_again(value: Any) -> None:
    made = read_back(set_value("a.b", value).written())

    assert repr(made.value) == repr(value)


def test_not_a_number_can_be_written() -> None:
    written = add("mask", float("nan"), shape=[2]).written()

    assert read_back(written).written() == written


def test_value_that_holds_itself_is_shown() -> None:
    value: list[Any] = []
    value.append(value)

    assert "..." in str(set_value("a", value))

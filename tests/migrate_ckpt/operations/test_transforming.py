"""Form and order of tensors: held against torch's own, and against the layouts that other people's code reads."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from migrate_ckpt import IncompleteGroup, KeysNotFound, NotInvertible, OperationError
from migrate_ckpt.operations import (
    Operation,
    merge_qkv,
    pad_rows,
    permute,
    permute_rows,
    reshape,
    scale,
    split_qkv,
    stack,
    transpose,
    trim_rows,
    unstack,
)

PARTS = ["q.{n}", "k.{n}", "v.{n}"]


def numbers(*shape: int) -> torch.Tensor:
    return torch.arange(float(torch.Size(shape).numel())).reshape(shape)


def applied(operation: Operation, **state_dict: torch.Tensor) -> dict[str, torch.Tensor]:
    ckpt: dict[str, Any] = {"state_dict": {k.replace("_", "."): v for k, v in state_dict.items()}}
    return dict(operation(ckpt)["state_dict"])


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (transpose("a"), numbers(2, 3).T),
        (permute("a", [1, 0]), numbers(2, 3).T),
        (permute("a", [-2, -1]), numbers(2, 3)),
        (reshape("a", [3, 2]), numbers(3, 2)),
        (reshape("a", [-1]), numbers(6)),
        (reshape("a", [1, 2, 1, -1]), numbers(1, 2, 1, 3)),
        (permute_rows("a", [1, 0]), numbers(2, 3)[[1, 0]]),
        (permute_rows("a", [2, 0, 1], dim=1), numbers(2, 3)[:, [2, 0, 1]]),
        (trim_rows("a", 1), numbers(2, 3)[:1]),
        (trim_rows("a", 2, start=1, dim=-1), numbers(2, 3)[:, 1:]),
        (pad_rows("a", 2), torch.cat([numbers(2, 3), torch.zeros(2, 3)])),
        (
            pad_rows("a", 1, at="start", value=7),
            torch.cat([torch.full((1, 3), 7.0), numbers(2, 3)]),
        ),
        (scale("a", factor=2, shift=1), numbers(2, 3) * 2 + 1),
    ],
    ids=str,
)
def test_tensor_comes_out_as_torch_makes_it(operation: Operation, expected: torch.Tensor) -> None:
    made = applied(operation, a=numbers(2, 3), b=torch.zeros(1))["a"]

    assert torch.equal(made, expected)
    assert made.is_contiguous()
    assert made.untyped_storage().nbytes() == made.numel() * 4


def test_parameter_stays_one_and_integers_and_halves_keep_their_dtype() -> None:
    frozen = torch.nn.Parameter(numbers(2, 2), requires_grad=False)

    made = applied(
        transpose(["a", "b", "c"]), a=frozen, b=numbers(2, 2).int(), c=numbers(2, 2).half()
    )

    assert isinstance(made["a"], torch.nn.Parameter)
    assert not made["a"].requires_grad
    assert (made["b"].dtype, made["c"].dtype) == (torch.int32, torch.float16)


def test_tied_tensors_stay_tied() -> None:
    tied = numbers(2, 3)

    made = applied(transpose(["a", "b"]), a=tied, b=tied)

    assert made["a"].data_ptr() == made["b"].data_ptr()


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (transpose("a"), "has no dimensions"),
        (permute("b", [0, 0]), "has no dimensions"),
        (permute("b", [0]), "has no dimensions"),
        (reshape("b", [4, 2]), "do not fit into"),
        (permute_rows("b", [1, 0, 2]), "each of the 2 rows"),
        (permute_rows("b", [0, 1], dim=5), "has no dimension 5"),
        (trim_rows("b", 2, start=1), "cannot be kept of 2"),
        (scale("c", factor=2), "int64 is not scaled"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_said_with_the_key_and_changes_nothing(
    operation: Operation, message: str
) -> None:
    state_dict = {"a": numbers(1, 2, 3), "b": numbers(2, 3), "c": torch.ones(2, dtype=torch.long)}
    before = dict(state_dict)

    with pytest.raises(OperationError, match=message) as caught:
        operation({"state_dict": state_dict})

    assert f"'{operation.keys[0]}'" in str(caught.value)  # type: ignore[attr-defined]
    assert all(state_dict[key] is value for key, value in before.items())


def test_key_that_is_not_there_is_said() -> None:
    with pytest.raises(KeysNotFound, match=r"no key is 'x'"):
        applied(transpose("x"), a=numbers(2, 2))
    assert "a" in applied(transpose("x", missing="skip"), a=numbers(2, 2))


@pytest.mark.parametrize(
    "operation", [trim_rows("a", 1), scale("a", factor=2), scale("a", shift=1)]
)
def test_what_is_lost_cannot_be_undone(operation: Operation) -> None:
    with pytest.raises(NotInvertible, match="'a'"):
        operation.inverse({"state_dict": {"a": numbers(2, 3)}})


def test_wrong_arguments_are_refused_where_they_are_written() -> None:
    for wrong in (
        lambda: permute_rows("a", [0, 2]),
        lambda: trim_rows("a", -1),
        lambda: pad_rows("a", -1),
        lambda: pad_rows("a", 1, at="middle"),  # type: ignore[arg-type]
        lambda: split_qkv("x.{n}", PARTS[:2], heads=1),
        lambda: split_qkv("x.{n}", PARTS, heads=3, kv_heads=2),
        lambda: split_qkv("x.{n}", PARTS, heads=0),
        lambda: merge_qkv(PARTS, "x.{n}", heads=1, layout="rows"),  # type: ignore[arg-type]
        lambda: stack("x.{i}", "x", over="j"),
        lambda: stack("x.{i}", "x.{i}", over="i"),
        lambda: unstack("x", "x.{i}.{j}", over="i"),
    ):
        with pytest.raises(ValueError, match=r"\w"):
            wrong()


def test_blocks_are_query_then_key_then_value() -> None:
    whole = numbers(10, 3)

    made = applied(split_qkv("x.{n}", PARTS, heads=3, kv_heads=1), x_w=whole)

    assert [tuple(made[f"{part}.w"].shape) for part in "qkv"] == [(6, 3), (2, 3), (2, 3)]
    assert torch.equal(torch.cat([made[f"{part}.w"] for part in "qkv"]), whole)


def test_groups_are_those_of_gpt_neox() -> None:
    # GPT-NeoX's attention: qkv.view(heads, 3 * size).chunk(3, dim=-1), of the output, hence of the rows.
    heads, size = 4, 5
    whole = numbers(heads * 3 * size, 7)
    by_head = whole.view(heads, 3 * size, 7)
    expected = [part.reshape(-1, 7) for part in by_head.chunk(3, dim=1)]

    made = applied(split_qkv("x.{n}", PARTS, heads=heads, layout="grouped"), x_w=whole)

    assert all(
        torch.equal(made[f"{part}.w"], wanted) for part, wanted in zip("qkv", expected, strict=True)
    )


def test_groups_are_those_of_megatron_where_heads_are_shared() -> None:
    # Megatron-LM: for each group of query heads these, then the group's key, then its value.
    groups, shared, size = 2, 3, 4
    query = [[numbers(size) + 100 * g + 10 * s for s in range(shared)] for g in range(groups)]
    key = [numbers(size) + 1000 * (g + 1) for g in range(groups)]
    value = [numbers(size) - 1000 * (g + 1) for g in range(groups)]
    whole = torch.cat([torch.cat([*query[g], key[g], value[g]]) for g in range(groups)])

    operation = split_qkv("x.{n}", PARTS, heads=6, kv_heads=2, layout="grouped")
    made = applied(operation, x_bias=whole)
    again = applied(
        merge_qkv(PARTS, "x.{n}", heads=6, kv_heads=2, layout="grouped"),
        **{name.replace(".", "_"): tensor for name, tensor in made.items()},
    )

    assert torch.equal(made["q.bias"], torch.cat([head for group in query for head in group]))
    assert torch.equal(made["k.bias"], torch.cat(key))
    assert torch.equal(made["v.bias"], torch.cat(value))
    assert torch.equal(again["x.bias"], whole)


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (split_qkv("x.{n}", PARTS, heads=4), "10 rows do not share out among 4 heads"),
        (merge_qkv(PARTS, "y.{n}", heads=2), r"have \[2, 4, 6\] rows, and the heads ask for"),
    ],
)
def test_rows_that_do_not_share_out_are_refused(operation: Operation, message: str) -> None:
    tensors = {"q_w": numbers(2), "k_w": numbers(4), "v_w": numbers(6)}
    if "split" in str(operation):
        tensors = {"x_w": numbers(10)}

    with pytest.raises(OperationError, match=message):
        applied(operation, **tensors)


def test_parts_are_stacked_by_their_numbers() -> None:
    state_dict = {f"experts.{i}.w": numbers(2, 3) + 10 * i for i in reversed(range(12))}
    ckpt = {"state_dict": {"a": torch.ones(1), **state_dict, "z": torch.ones(1)}}

    stack("experts.{e}.{n}", "experts.{n}", over="e")(ckpt)
    whole = ckpt["state_dict"]["experts.w"]

    assert list(ckpt["state_dict"]) == ["a", "experts.w", "z"]
    assert torch.equal(whole, torch.stack([state_dict[f"experts.{i}.w"] for i in range(12)]))

    unstack("experts.{n}", "experts.{e}.{n}", over="e")(ckpt)

    assert list(ckpt["state_dict"])[1:-1] == [f"experts.{i}.w" for i in range(12)]
    assert torch.equal(ckpt["state_dict"]["experts.11.w"], state_dict["experts.11.w"])


@pytest.mark.parametrize("numbered", [("0", "2"), ("1", "2"), ("0", "x"), ("0", "01")])
def test_numbers_with_a_hole_are_refused(numbered: tuple[str, ...]) -> None:
    ckpt = {"state_dict": {f"experts.{i}.w": numbers(2) for i in numbered}}

    with pytest.raises(IncompleteGroup, match="the numbers must be 0 to 1"):
        stack("experts.{e}.w", "experts.w", over="e")(ckpt)


def test_parts_of_different_shapes_are_not_stacked() -> None:
    ckpt = {"state_dict": {"e.0": numbers(2), "e.1": numbers(3)}}

    with pytest.raises(OperationError, match=r"float32\[2\], float32\[3\] cannot be stacked"):
        stack("e.{i}", "e", over="i")(ckpt)


def test_what_has_no_such_dimension_is_not_taken_apart() -> None:
    with pytest.raises(OperationError, match="has no dimension 1"):
        applied(unstack("a", "a.{i}", over="i", dim=1), a=numbers(3))


@pytest.mark.parametrize(
    ("operation", "text"),
    [
        (transpose(["a", "b.{i}"]), "transpose(['a', 'b.{i}'])"),
        (permute("a", [1, 0], section="ema"), "permute(['a'], [1, 0], section='ema')"),
        (reshape("a", [2, -1]), "reshape(['a'], [2, -1])"),
        (permute_rows("a", [1, 0], dim=1), "permute_rows(['a'], [1, 0], dim=1)"),
        (trim_rows("a", 3, start=1), "trim_rows(['a'], 3, start=1)"),
        (pad_rows("a", 3, at="start"), "pad_rows(['a'], 3, at='start')"),
        (scale("a", shift=1.0), "scale(['a'], shift=1.0)"),
        (stack("e.{i}", "e", over="i"), "stack('e.{i}', 'e', over='i')"),
        (unstack("e", "e.{i}", over="i", dim=1), "unstack('e', 'e.{i}', over='i', dim=1)"),
        (
            split_qkv("x", ["q", "k", "v"], heads=4, kv_heads=2, layout="grouped"),
            "split_qkv('x', ['q', 'k', 'v'], heads=4, kv_heads=2, layout='grouped')",
        ),
    ],
)
def test_operation_is_shown_as_it_is_written(operation: Operation, text: str) -> None:
    assert str(operation) == text

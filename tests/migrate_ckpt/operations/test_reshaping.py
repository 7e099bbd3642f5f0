from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from migrate_ckpt import (
    IncompleteGroup,
    KeysNotFound,
    NotInvertible,
    OperationError,
    SectionNotFound,
    read_checkpoint,
    write_checkpoint,
)
from migrate_ckpt.operations import add, cast, concat, drop, reindex, split

PARTS = [f"layers.{{i}}.{name}.weight" for name in "qkv"]
FUSED = "layers.{i}.qkv.weight"


def test_parts_stand_where_the_whole_stood_and_hold_no_more_than_themselves(tmp_path: Path) -> None:
    ckpt = {"model": {"a": torch.ones(1), "layers.0.qkv.weight": torch.rand(300, 100), "z": 1}}
    whole = ckpt["model"]["layers.0.qkv.weight"]

    split(FUSED, PARTS)(ckpt)
    write_checkpoint({"model": {"q": ckpt["model"]["layers.0.q.weight"]}}, tmp_path / "q.ckpt")

    assert list(ckpt["model"]) == ["a", *(f"layers.0.{name}.weight" for name in "qkv"), "z"]
    assert torch.equal(torch.cat([ckpt["model"][f"layers.0.{n}.weight"] for n in "qkv"]), whole)
    assert (tmp_path / "q.ckpt").stat().st_size < whole.nbytes / 2


def test_tensors_of_a_file_can_be_split_and_joined(tmp_path: Path) -> None:
    whole = torch.rand(6, 2)
    torch.save({"state_dict": {"layers.0.qkv.weight": whole}}, tmp_path / "old.ckpt")
    ckpt = read_checkpoint(tmp_path / "old.ckpt")

    concat(PARTS, FUSED)(split(FUSED, PARTS)(ckpt))

    assert torch.equal(ckpt["state_dict"]["layers.0.qkv.weight"], whole)


def test_joined_tensors_are_in_the_order_listed_and_contiguous() -> None:
    ckpt = {"state_dict": {f"layers.0.{name}.weight": torch.rand(4, 2).T for name in "vqk"}}
    parts = [ckpt["state_dict"][f"layers.0.{name}.weight"] for name in "qkv"]

    concat(PARTS, FUSED, dim=1)(ckpt)

    whole = ckpt["state_dict"]["layers.0.qkv.weight"]
    assert torch.equal(whole, torch.cat(parts, dim=1))
    assert whole.is_contiguous()


def test_inverse_of_joining_knows_the_sizes_of_each_whole() -> None:
    ckpt = {
        "state_dict": {
            f"layers.{i}.{name}.weight": torch.rand(rows + i, 2)
            for i in range(2)
            for name, rows in {"q": 4, "k": 1, "v": 2}.items()
        }
    }
    before = dict(ckpt["state_dict"])
    operation = concat(PARTS, FUSED)
    inverse = operation.inverse(ckpt)

    operation(ckpt)
    for step in inverse:
        step(ckpt)

    assert {key: tuple(value.shape) for key, value in ckpt["state_dict"].items()} == {
        key: tuple(value.shape) for key, value in before.items()
    }


def test_tied_wholes_become_tied_parts() -> None:
    tied = torch.rand(6, 2)
    ckpt = {"state_dict": {"layers.0.qkv.weight": tied, "layers.1.qkv.weight": tied}}

    split(FUSED, PARTS)(ckpt)

    first, second = (ckpt["state_dict"][f"layers.{i}.k.weight"] for i in range(2))
    assert first.data_ptr() == second.data_ptr()


def test_part_of_a_whole_that_is_missing_is_named_even_where_none_need_be_there() -> None:
    ckpt = {"state_dict": {"layers.0.q.weight": torch.ones(2), "layers.0.k.weight": torch.ones(2)}}

    with pytest.raises(IncompleteGroup, match=r"In state_dict: 'layers\.0\.v\.weight'") as caught:
        concat(PARTS, FUSED, missing="skip")(ckpt)

    assert caught.value.keys == ("layers.0.v.weight",)
    assert len(ckpt["state_dict"]) == 2


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (split("a", ["x", "y"]), r"'a': a tensor of shape \(5, 2\) cannot be split into 2 equal"),
        (split("a", ["x", "y"], sizes=[2, 2]), r"into parts of \(2, 2\)"),
        (split("a", ["x", "y"], dim=2), "has no dimension 2"),
        (split("n", ["x", "y"]), "its value is a int and no dense tensor"),
        (concat(["a", "b"], "x", dim=1), r"float32\[5, 2\], float32\[3, 2\] cannot be joined"),
        (concat(["b", "c"], "x"), r"float32\[3, 2\], int64\[3, 2\] cannot be joined"),
        (cast("float31"), "no dtype 'float31'"),
    ],
    ids=["odd", "sizes", "dimension", "no tensor", "shapes", "dtypes", "no dtype"],
)
def test_what_the_tensors_do_not_allow_is_refused_and_nothing_changes(
    operation: object, message: str
) -> None:
    weights = {
        "a": torch.ones(5, 2),
        "b": torch.ones(3, 2),
        "c": torch.ones(3, 2, dtype=torch.int64),
        "n": 1,
    }
    ckpt = {"state_dict": dict(weights)}

    with pytest.raises(OperationError, match=message):
        operation(ckpt)  # type: ignore[operator]

    assert ckpt["state_dict"] == weights


def test_cast_leaves_integers_alone_unless_asked() -> None:
    weights = {"w": torch.ones(2), "n": torch.tensor(1), "b": torch.tensor(True)}
    some, all_ = {"state_dict": dict(weights)}, {"state_dict": dict(weights)}

    cast(torch.bfloat16)(some)
    cast("float16", integers=True)(all_)

    assert [v.dtype for v in some["state_dict"].values()] == [
        torch.bfloat16,
        torch.int64,
        torch.bool,
    ]
    assert {v.dtype for v in all_["state_dict"].values()} == {torch.float16}


def test_cast_of_a_view_does_not_keep_the_whole() -> None:
    ckpt = {"state_dict": {"w": torch.ones(100, 2)[:1]}}

    cast("float64")(ckpt)

    assert ckpt["state_dict"]["w"].untyped_storage().nbytes() == 16


@pytest.mark.parametrize(
    "operation", [cast("bfloat16"), cast("float16"), drop("w")], ids=["bf16", "f16", "drop"]
)
def test_what_gives_something_up_has_no_inverse(operation: object) -> None:
    with pytest.raises(NotInvertible, match="'w'"):
        operation.inverse({"state_dict": {"w": torch.ones(2)}})  # type: ignore[attr-defined]


def test_parameter_stays_a_parameter() -> None:
    ckpt = {"state_dict": {"w": torch.nn.Parameter(torch.ones(2, 2))}}

    split("w", ["a", "b"])(ckpt)

    assert all(type(v) is torch.nn.Parameter and v.is_leaf for v in ckpt["state_dict"].values())


def test_dropped_bytes_are_told(caplog: pytest.LogCaptureFixture) -> None:
    ckpt = {"state_dict": {"a.inv_freq": torch.ones(8), "b.inv_freq": torch.ones(8), "w": 1}}
    operation = drop("{layer}.inv_freq")
    count = operation.dropped_bytes(ckpt)

    with caplog.at_level("INFO"):
        operation(ckpt)

    assert count == 64
    assert "drop('{layer}.inv_freq') gave up 64 bytes" in caplog.text
    assert list(ckpt["state_dict"]) == ["w"]


def test_versions_of_parts_are_those_of_the_whole_and_back() -> None:
    versions = OrderedDict({"": {"version": 1}, "qkv": {"version": 7}, "z": {"version": 2}})
    state_dict = OrderedDict({"qkv.weight": torch.ones(6), "qkv.bias": torch.ones(6), "z.w": 1})
    state_dict._metadata = versions  # type: ignore[attr-defined]
    ckpt = {"state_dict": state_dict}

    split("qkv.{n}", [f"{name}.{{n}}" for name in "qkv"])(ckpt)
    apart = dict(versions)
    concat([f"{name}.{{n}}" for name in "qkv"], "qkv.{n}")(ckpt)

    assert apart == {
        "": {"version": 1},
        **{name: {"version": 7} for name in "qkv"},
        "z": {"version": 2},
    }
    assert versions == {"": {"version": 1}, "qkv": {"version": 7}, "z": {"version": 2}}


def test_versions_of_what_is_dropped_go_with_it() -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.BatchNorm1d(2), "b": torch.nn.Linear(2, 2)})
    ckpt = {"state_dict": model.state_dict()}

    drop("a.{name}")(ckpt)

    assert list(ckpt["state_dict"]._metadata) == ["", "b"]


def test_layers_are_renumbered_at_once_with_their_versions() -> None:
    old = torch.nn.ModuleDict(
        {"layers": torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)])}
    )
    ckpt = {"state_dict": old.state_dict()}

    reindex("layers.{i}", {0: 1, 1: 0})(ckpt)

    metadata = ckpt["state_dict"]._metadata
    assert list(ckpt["state_dict"])[:3] == ["layers.1.weight", "layers.1.bias", "layers.0.weight"]
    assert (metadata["layers.0"], metadata["layers.1"]) == ({"version": 2}, {"version": 1})


@pytest.mark.parametrize(
    ("operation", "error"),
    [
        (reindex("layers.{i}", {0: 5, 7: 6}), IncompleteGroup),
        (reindex("blocks.{i}", shift=1), KeysNotFound),
        (reindex("layers.{i}", shift=-1), OperationError),
    ],
    ids=["layer not there", "no layers", "below zero"],
)
def test_layers_that_cannot_be_renumbered_are_an_error(
    operation: object, error: type[OperationError]
) -> None:
    ckpt = {"state_dict": {"layers.0.w": torch.ones(1), "layers.1.w": torch.ones(1)}}

    with pytest.raises(error):
        operation(ckpt)  # type: ignore[operator]

    assert list(ckpt["state_dict"]) == ["layers.0.w", "layers.1.w"]


def test_new_key_comes_after_what_it_is_made_from() -> None:
    ckpt = {"state_dict": {"a.weight": torch.ones(2), "z": torch.ones(1)}}

    add("a.bias", 0, like="a.weight")(ckpt)
    add("steps", 3, dtype="int64")(ckpt)

    assert list(ckpt["state_dict"]) == ["a.weight", "a.bias", "z", "steps"]
    assert torch.equal(ckpt["state_dict"]["a.bias"], torch.zeros(2))
    assert ckpt["state_dict"]["steps"].dtype == torch.int64


def test_existing_key_is_replaced_by_none() -> None:
    ckpt = {"state_dict": {"a": torch.ones(2)}}

    with pytest.raises(OperationError, match="'a' would hold two values"):
        add("a", 0)(ckpt)
    add("a", 0, existing="skip")(ckpt)

    assert torch.equal(ckpt["state_dict"]["a"], torch.ones(2))


@pytest.mark.parametrize(
    ("ckpt", "section", "expected"),
    [
        ({"model_state_dict": {"w": torch.ones(1)}, "epoch": 1}, None, ["model_state_dict"]),
        ({"w": torch.ones(1), "step": 3}, None, []),
        ({"w": torch.ones(1), "head._extra_state": {"version": 2}}, None, []),
        ({"a": {"b.c": {"w": torch.ones(1)}}}, ("a", "b.c"), ["a", "b.c"]),
        (
            {"state_dict": {}, "ema": {"params": {"w": torch.ones(1)}}},
            "ema.params",
            ["ema", "params"],
        ),
    ],
    ids=["usual name", "flat", "flat with extra state", "tuple", "path"],
)
def test_section_is_found(ckpt: dict[str, object], section: object, expected: list[str]) -> None:
    cast("float16", section=section)(ckpt)  # type: ignore[arg-type]

    value: object = ckpt
    for name in expected:
        value = value[name]  # type: ignore[index]
    assert value["w"].dtype == torch.float16  # type: ignore[index]


def test_several_sections_are_changed_at_once_and_a_shared_one_once() -> None:
    shared = {"a": torch.ones(1)}
    ckpt = {"state_dict": shared, "best": shared, "ema": {"a": torch.ones(1)}}

    add("b", 1, section=["state_dict", "best", "ema"])(ckpt)

    assert list(ckpt["best"]) == list(ckpt["ema"]) == ["a", "b"]


@pytest.mark.parametrize(
    ("ckpt", "section", "message"),
    [
        ({"epoch": 1}, None, "a mapping that holds tensors, under state_dict, model"),
        (
            {"model": {"a": torch.ones(1)}, "state_dict": {"a": torch.ones(1)}},
            None,
            "state_dict and model are there",
        ),
        ({"state_dict": {"a": torch.ones(1)}}, "ema", "There is no section 'ema': .* state_dict"),
        ({"state_dict": {"a": torch.ones(1)}}, "state_dict.a", "a Tensor, not a state dict"),
    ],
    ids=["none", "two", "not there", "a tensor"],
)
def test_section_that_cannot_be_told_is_an_error(
    ckpt: dict[str, object], section: str | None, message: str
) -> None:
    with pytest.raises(SectionNotFound, match=message):
        drop("a", section=section)(ckpt)


def test_history_of_a_flat_state_dict_is_no_key_to_work_on() -> None:
    ckpt = {"a": torch.ones(1), "_migrate-ckpt-migrations": ["0001_x"]}

    drop("a")(add("b", 1)(ckpt))

    assert list(ckpt) == ["_migrate-ckpt-migrations", "b"]

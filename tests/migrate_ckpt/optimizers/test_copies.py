"""Copies of the model go with it: those that are certain to be copies, and those that the author names."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from migrate_ckpt.errors import OptimizerNotFollowed
from migrate_ckpt.operations import Operation, cast, follow, rename, split, unwrap
from migrate_ckpt.optimizers.rules import OptimizerRules
from migrate_ckpt.optimizers.undo import apply_undoably

from .networks import facts
from .test_naming import migrate

OPERATIONS: list[Operation] = [
    split("qkv.{n}", ["q.{n}", "k.{n}", "v.{n}"]),
    rename("head.{n}", "out.{n}"),
]


def test_moving_average_of_all_keys_goes_with_the_model(old: dict[str, Any]) -> None:
    old["callbacks"] = {"EMA": {"weights": copy.deepcopy(old["state_dict"])}}

    migrate(old, OPERATIONS)

    ema = old["callbacks"]["EMA"]["weights"]
    assert facts(ema) == facts(old["state_dict"])
    assert list(ema._metadata) == list(old["state_dict"]._metadata)
    assert "q" in ema._metadata


@pytest.mark.parametrize("what", ["a key less", "another dtype", "another shape"])
def test_what_is_not_certain_to_be_a_copy_is_left_alone(what: str, old: dict[str, Any]) -> None:
    ema = dict(old["state_dict"])
    if what == "a key less":
        del ema["head.bias"]
    else:
        ema["head.bias"] = (
            torch.zeros(8, dtype=torch.float64) if "dtype" in what else torch.zeros(9)
        )
    old["ema"] = ema
    before = facts(ema)

    migrate(old, OPERATIONS)

    assert facts(old["ema"]) == before


def test_copy_that_lacks_some_keys_goes_along_if_the_author_names_it(old: dict[str, Any]) -> None:
    old["ema"] = {key: old["state_dict"][key] for key in ("qkv.weight", "first.weight")}

    migrate(old, OPERATIONS, follow(copies=["ema", "not.there"]))

    assert list(old["ema"]) == ["q.weight", "k.weight", "v.weight", "first.weight"]


def test_section_that_an_operation_names_is_not_done_twice(old: dict[str, Any]) -> None:
    old["ema"] = copy.deepcopy(old["state_dict"])
    both: Any = ["state_dict", "ema"]

    migrate(old, [rename("head.{n}", "out.{n}", section=both), rename("first.{n}", "a.{n}")])

    assert "out.weight" in old["ema"]
    assert "first.weight" in old["ema"]


def test_file_without_an_optimizer_comes_out_as_before(old: dict[str, Any]) -> None:
    del old["optimizer_states"]
    old["ema"] = copy.deepcopy(old["state_dict"])

    assert OptimizerRules().begin(old, OPERATIONS) is None


def test_file_without_an_optimizer_takes_along_what_the_author_names(old: dict[str, Any]) -> None:
    del old["optimizer_states"]
    old["ema"], old["best"] = (copy.deepcopy(old["state_dict"]) for _ in range(2))

    migrate(old, OPERATIONS, follow(copies=["ema"]))

    assert "out.weight" in old["ema"]
    assert "head.weight" in old["best"]


def test_copy_is_cast_as_the_model_is(old: dict[str, Any]) -> None:
    old["ema"] = copy.deepcopy(old["state_dict"])

    migrate(old, [cast("float64")])

    assert {tensor.dtype for tensor in old["ema"].values()} == {torch.float64}


def test_way_back_takes_the_copies_along(old: dict[str, Any]) -> None:
    old["ema"] = copy.deepcopy(old["state_dict"])
    before = facts(old)

    ckpt, inverses, rules = apply_undoably(OPERATIONS, old)
    assert "out.weight" in ckpt["ema"]
    ckpt, _, _ = apply_undoably(inverses, ckpt, rules)

    assert facts(ckpt) == before


def test_optimizer_follows_where_the_checkpoint_is_unwrapped_in_between(
    old: dict[str, Any],
) -> None:
    wrapped = {"outer": old}
    operations = [unwrap("outer"), *OPERATIONS]

    with pytest.raises(OptimizerNotFollowed, match=r"outer\.optimizer_states\.0 optimizes"):
        migrate(wrapped, operations)

    ckpt = migrate(wrapped, operations, follow(section="outer.state_dict"))
    assert len(ckpt["optimizer_states"][0]["state"]) == 14


def test_what_is_named_and_no_state_dict_is_refused(old: dict[str, Any]) -> None:
    old["ema"] = [1]

    with pytest.raises(OptimizerNotFollowed, match="ema is a list and no copy"):
        migrate(old, OPERATIONS, follow(copies=["ema"]))


def test_copies_go_with_the_state_dict_that_the_author_names(old: dict[str, Any]) -> None:
    ckpt = {"net": old["state_dict"], "optimizer": old["optimizer_states"][0]}
    ckpt["ema"] = copy.deepcopy(ckpt["net"])
    operations = [rename("head.{n}", "out.{n}", section="net")]

    migrate(ckpt, operations, follow(section="net"))

    assert "out.weight" in ckpt["ema"]


def test_way_back_takes_nothing_along_that_has_only_come_to_look_like_a_copy(
    old: dict[str, Any],
) -> None:
    old["double"] = {key: tensor.double() for key, tensor in old["state_dict"].items()}
    before = facts(old)

    ckpt, inverses, rules = apply_undoably([cast("float64")], old)
    following = rules.begin(ckpt, inverses)
    assert following is not None
    for operation in inverses:
        ckpt = following.apply(operation, ckpt)
    following.finish(ckpt)

    assert facts(ckpt) == before

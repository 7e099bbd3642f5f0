"""Whose the positions are: by name, by declaration, by count, by shape; and nobody guesses."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from migrate_ckpt.errors import OptimizerNotFollowed
from migrate_ckpt.operations import (
    Operation,
    add,
    concat,
    drop,
    follow,
    rename,
    split,
    strip_prefix,
    unwrap,
)
from migrate_ckpt.optimizers.declaration import Follow
from migrate_ckpt.optimizers.rules import OptimizerRules
from migrate_ckpt.optimizers.undo import apply_undoably

from .conftest import marked, moments, trained
from .networks import facts

HALVES = [split("b.w", ["b.x.w", "b.y.w"])]


def migrate(ckpt: Any, operations: Sequence[Operation], *rules: Follow) -> Any:
    following = OptimizerRules(rules or (follow(),)).begin(ckpt, operations)
    assert following is not None
    for operation in operations:
        ckpt = following.apply(operation, ckpt)
    following.finish(ckpt)
    return ckpt


def refused(ckpt: Any, operations: Sequence[Operation], *rules: Follow) -> str:
    """Why a migration is refused; nothing has changed then."""
    before = facts(ckpt)
    with pytest.raises(OptimizerNotFollowed) as caught:
        migrate(ckpt, operations, *rules)
    assert facts(ckpt) == before
    return str(caught.value)


def test_count_of_the_parameters_tells_whose_the_positions_are() -> None:
    ckpt = migrate(marked(["a.w", "b.w", "c.w"]), HALVES)

    assert moments(ckpt) == [0, 1, 1, 2]
    assert ckpt["optimizer"]["state"][2]["exp_avg"].shape == (2, 4)


def test_names_tell_it_in_any_order_and_any_groups() -> None:
    ckpt = migrate(marked(["a.w", "b.w", "c.w"], names=[["c.w"], ["b.w", "a.w"]]), [drop("b.w")])

    assert moments(ckpt) == [2, 0]
    assert [g["param_names"] for g in ckpt["optimizer"]["param_groups"]] == [["c.w"], ["a.w"]]


def test_names_that_all_lack_a_prefix_are_understood_and_keep_lacking_it() -> None:
    ckpt = marked(["net.a.w", "net.b.w"], names=[["net.a.w", "net.b.w"]])
    ckpt["optimizer"]["param_groups"][0]["param_names"] = ["a.w", "b.w"]

    renamed = migrate(ckpt, [rename("net.b.w", "net.c.w")])
    assert renamed["optimizer"]["param_groups"][0]["param_names"] == ["a.w", "c.w"]

    stripped = migrate(renamed, [strip_prefix("net")])
    assert stripped["optimizer"]["param_groups"][0]["param_names"] == ["a.w", "c.w"]


def test_positions_that_are_names_stay_names() -> None:
    ckpt = marked(["a.w", "b.w"])
    held = ckpt["optimizer"]
    held["state"] = dict(zip(["a.w", "b.w"], held["state"].values(), strict=True))
    held["param_groups"][0]["params"] = ["a.w", "b.w"]

    migrate(ckpt, HALVES)

    assert list(held["state"]) == held["param_groups"][0]["params"] == ["a.w", "b.x.w", "b.y.w"]


def test_names_that_the_shapes_speak_against_are_refused() -> None:
    ckpt = marked(["a.w", "b.w"], names=[["a.w", "b.w"]])
    ckpt["state_dict"]["a.w"] = torch.zeros(2)

    assert "by its names the states of 'a.w' would not have its shape" in refused(ckpt, HALVES)


def test_value_that_is_no_tensor_is_no_parameter() -> None:
    """As the extra state of a module, which may be anything."""
    ckpt = marked(["a.w", "b.w"])
    ckpt["state_dict"] |= {"who.knows": torch.zeros(4, 4), "a._extra_state": {"x": 1}}
    before = facts(ckpt["optimizer"])

    migrate(ckpt, [drop("a._extra_state"), rename("b.w", "c.w")])

    assert facts(ckpt["optimizer"]) == before


def test_names_that_are_no_keys_are_refused() -> None:
    ckpt = marked(["a.w", "b.w"], names=[["a.w", "b.w"]])
    ckpt["optimizer"]["param_groups"][0]["param_names"] = ["x", "y"]

    assert "its names, such as 'x', are not the keys" in refused(ckpt, HALVES)


def test_two_groups_without_names_are_refused() -> None:
    ckpt = trained(
        lambda model: torch.optim.Adam(
            [{"params": model.head.parameters()}, {"params": model.layers.parameters()}]  # type: ignore[union-attr]
        )
    )

    reason = refused(ckpt, [split("qkv.{n}", ["q.{n}", "k.{n}", "v.{n}"])])

    assert "no param_names and 2 groups of [2, 4] parameters" in reason
    assert "follow(order_before=[...])" in reason


def test_frozen_parameter_that_the_optimizer_does_not_have_makes_it_uncertain() -> None:
    ckpt = marked(["a.w", "b.w", "c.w"])
    ckpt["state_dict"]["frozen.w"] = torch.zeros(4, 4)

    assert "3 parameters, and the state dict has 4 tensors" in refused(ckpt, HALVES)


def test_author_says_which_parameters_the_optimizer_has() -> None:
    ckpt = marked(["a.w", "b.w", "c.w"])
    ckpt["state_dict"]["frozen.w"] = torch.zeros(4, 4)

    migrate(ckpt, HALVES, follow(order_before=["a", "b", "c"]))

    assert moments(ckpt) == [0, 1, 1, 2]


def test_author_says_which_are_buffers() -> None:
    ckpt = marked(["a.w", "b.w", "c.w"])
    ckpt["state_dict"]["mask"] = torch.zeros(4, 4)

    migrate(ckpt, HALVES, follow(buffers=["mask"]))

    assert moments(ckpt) == [0, 1, 1, 2]


def test_declared_order_of_another_length_is_refused() -> None:
    reason = refused(marked(["a.w", "b.w", "c.w"]), HALVES, follow(order_before=["a", "b"]))

    assert "order_before means 2 parameters in 1 groups, and it has [3]" in reason


def test_declared_order_that_the_shapes_speak_against_is_refused() -> None:
    ckpt = marked(["a.w", "b.w"])
    ckpt["state_dict"]["a.w"] = torch.zeros(2)
    ckpt["optimizer"]["state"][0]["exp_avg"] = torch.zeros(2)

    assert "would not have its shape" in refused(ckpt, HALVES, follow(order_before=["b", "a"]))


def test_buffers_of_batch_normalisation_are_known() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(8, 4)).sum().backward()
    optimizer.step()
    ckpt = {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}

    migrate(ckpt, [split("2.{n}", ["2.x.{n}", "2.y.{n}"])])

    state = ckpt["optimizer"]["state"]
    shapes = [tuple(state[position]["momentum_buffer"].shape) for position in range(8)]
    assert shapes == [(4, 4), (4,), (4,), (4,), (2, 4), (2,), (2, 4), (2,)]


def test_shapes_that_are_all_different_tell_it_without_a_count() -> None:
    """The optimizer was given its parameters backwards, in two groups."""
    weights = {name: nn.Parameter(torch.randn(size, 2)) for size, name in enumerate("abc", 1)}
    optimizer = torch.optim.Adam(
        [{"params": [weights["c"]]}, {"params": [weights["a"], weights["b"]]}]
    )
    sum(weight.sum() for weight in weights.values()).backward()  # type: ignore[union-attr]
    optimizer.step()
    state_dict = {name: weight.detach() for name, weight in weights.items()}
    ckpt = {"state_dict": state_dict, "optimizer": optimizer.state_dict()}

    migrate(ckpt, [split("b", ["b1", "b2"])])

    shapes = [tuple(state["exp_avg"].shape) for state in ckpt["optimizer"]["state"].values()]
    assert shapes == [(3, 2), (1, 2), (1, 2), (1, 2)]


def test_shapes_of_the_states_must_be_those_of_the_parameters() -> None:
    ckpt = marked(["a.w", "b.w"])
    ckpt["state_dict"]["a.w"] = torch.zeros(2)

    assert "do not have the shapes of the parameters" in refused(ckpt, HALVES)


def test_nobody_needs_to_know_where_every_parameter_stays_in_its_place() -> None:
    ckpt = marked(["a.w", "b.w"])
    ckpt["state_dict"]["who.knows"] = torch.zeros(4, 4)
    before = facts(ckpt["optimizer"])

    migrate(ckpt, [rename("b.w", "c.w")])

    assert facts(ckpt["optimizer"]) == before
    assert list(ckpt["state_dict"]) == ["a.w", "c.w", "who.knows"]


@pytest.mark.parametrize(
    "operations",
    [
        [add("bn.num_batches_tracked", 0)],
        [drop("bn.position_ids")],
        [rename("b.w", "c.w"), drop("bn.position_ids"), rename("bn.mean", "n.mean")],
        [split("bn.position_ids", ["bn.x", "bn.y"])],
    ],
    ids=["added", "dropped", "among others", "split"],
)
def test_nobody_needs_to_know_for_what_can_be_no_parameter(operations: list[Operation]) -> None:
    ckpt = marked(["a.w", "b.w"])
    ckpt["state_dict"]["bn.mean"] = torch.zeros(4, 4)
    ckpt["state_dict"]["bn.position_ids"] = torch.arange(4)
    before = facts(ckpt["optimizer"])

    migrate(ckpt, operations)

    assert facts(ckpt["optimizer"]) == before


@pytest.mark.parametrize(
    "operation",
    [add("c.w", 0.0, shape=[4, 4]), add("c.w", 0.0, like="a.w"), drop("b.w")],
    ids=["added", "added beside", "dropped"],
)
def test_somebody_must_know_for_what_may_be_a_parameter(operation: Operation) -> None:
    ckpt = marked(["a.w", "b.w"])
    ckpt["state_dict"]["who.knows"] = torch.zeros(4, 4)

    with pytest.raises(OptimizerNotFollowed, match="is not certain"):
        migrate(ckpt, [operation, rename("c.w", "d.w", missing="skip")])


def test_place_that_changes_in_the_tree_must_be_known() -> None:
    """A parameter that comes to stand in the root is the first of all, whatever the order of the keys."""
    ckpt = marked(["a.w", "b.w"])
    ckpt["state_dict"]["who.knows"] = torch.zeros(4, 4)

    with pytest.raises(OptimizerNotFollowed, match="parameters get other positions"):
        migrate(ckpt, [rename("b.w", "w")])


def test_parameter_that_moves_into_the_root_is_the_first() -> None:
    ckpt = migrate(marked(["a.w", "b.w"]), [rename("b.w", "w")])

    assert moments(ckpt) == [1, 0]


def test_keys_that_a_function_has_reordered_are_found_out_by_the_module_versions() -> None:
    """`weights["c.w"] = weights.pop("a.w")` moves a key to the end, and leaves the optimizer where it was."""
    ckpt = marked(["a.w", "b.w"])
    weights = OrderedDict(ckpt["state_dict"])
    weights._metadata = OrderedDict((m, {"version": 1}) for m in ["", "a", "b"])  # type: ignore[attr-defined]
    weights["a.w"] = weights.pop("a.w")
    ckpt["state_dict"] = weights

    assert "another order, or other names, than the modules" in refused(ckpt, HALVES)


def test_two_optimizers_that_fit_one_model_are_refused() -> None:
    """The critic has the form of the actor, and its optimizer fits either."""
    ckpt = marked(["a.w", "b.w"])
    ckpt["critic"] = dict(ckpt["state_dict"])
    ckpt["critic_optimizer"] = marked(["a.w", "b.w"])["optimizer"]

    assert "optimizer and critic_optimizer optimize is not certain" in refused(ckpt, HALVES)


def test_author_says_which_state_dict_an_optimizer_is_for() -> None:
    ckpt = marked(["a.w", "b.w"])
    ckpt["critic"] = dict(ckpt["state_dict"])
    ckpt["critic_optimizer"] = marked(["a.w", "b.w"])["optimizer"]
    operations = [split("b.w", ["b.x.w", "b.y.w"], section="state_dict")]

    migrate(ckpt, operations, follow(), follow("critic_optimizer", section="critic"))

    assert moments(ckpt) == [0, 1, 1]
    assert moments(ckpt, "critic_optimizer") == [0, 1]


def test_optimizer_of_no_known_state_dict_is_refused() -> None:
    ckpt = marked(["a.w", "b.w"])
    ckpt["net"] = ckpt.pop("state_dict")

    reason = refused(ckpt, [rename("a.w", "c.w", section="net")])
    assert "Which state dict optimizer optimizes is not certain" in reason

    migrate(ckpt, [split("b.w", ["b.x.w", "b.y.w"], section="net")], follow(section="net"))
    assert moments(ckpt) == [0, 1, 1]


def test_position_that_is_there_twice_is_refused() -> None:
    ckpt = marked(["a.w", "b.w"])
    ckpt["optimizer"]["param_groups"][0]["params"] = [0, 0]

    assert "names a parameter twice" in refused(ckpt, HALVES)


def test_tied_parameters_that_become_several_are_refused() -> None:
    ckpt = marked(["a.w", "b.w"])
    ckpt["state_dict"]["tied.w"] = ckpt["state_dict"]["b.w"]

    assert "'b.w', 'tied.w' are one parameter" in refused(ckpt, HALVES)


def test_parameters_of_different_groups_are_not_joined() -> None:
    ckpt = marked(["a.w", "b.w"], names=[["a.w"], ["b.w"]])

    assert "in different groups" in refused(ckpt, [concat(["a.w", "b.w"], "c.w")])


def test_parameter_and_what_the_optimizer_does_not_have_are_not_joined() -> None:
    ckpt = marked(["a.w", "b.w"], names=[["a.w"]])

    reason = refused(ckpt, [concat(["a.w", "b.w"], "c.w")])

    assert "the optimizer does not have 'b.w'" in reason


def test_inverse_is_certain_of_what_was_certain_before() -> None:
    ckpt = marked(["a.w", "b.w", "c.w"])
    ckpt["state_dict"]["frozen.w"] = torch.zeros(4, 4)
    before = facts(ckpt)
    rules = OptimizerRules((follow(order_before=["c", "b", "a"]),))

    ckpt, inverses, back = apply_undoably(HALVES, ckpt, rules)  # type: ignore[assignment]
    ckpt, _, _ = apply_undoably(inverses, ckpt, back)  # type: ignore[assignment]

    assert facts(ckpt) == before


def test_keys_are_not_moved_once_their_state_dict_was_taken_apart() -> None:
    ckpt = marked(["a.w", "b.w"])
    operations = [unwrap("state_dict"), rename("b.w", "c.w", section="")]

    with pytest.raises(OptimizerNotFollowed, match="was taken apart before"):
        migrate(ckpt, operations)

    ckpt = migrate(marked(["a.w", "b.w"]), operations[:1])
    assert moments(migrate(ckpt, operations[1:], follow(section=""))) == [0, 1]


@pytest.mark.parametrize("wrong", [[1, 2], [["a"], "b"]], ids=["numbers", "lists"])
def test_names_that_are_no_texts_are_as_none(wrong: list[Any]) -> None:
    ckpt = marked(["a.w", "b.w"], names=[["a.w", "b.w"]])
    ckpt["optimizer"]["param_groups"][0]["param_names"] = wrong

    assert moments(migrate(ckpt, HALVES)) == [0, 1, 1]


def test_state_that_is_no_mapping_is_refused() -> None:
    ckpt = marked(["a.w", "b.w"])
    ckpt["optimizer"]["state"][0] = [1]

    assert "a state that is no mapping" in refused(ckpt, HALVES)

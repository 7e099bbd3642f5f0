"""What becomes of states that can be carried, and of those that cannot."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from torch import nn

from migrate_ckpt.errors import NotInvertible, OptimizerNotFollowed
from migrate_ckpt.operations import add, cast, concat, drop, follow, rename, set_value, split, untie
from migrate_ckpt.operations.moves import Move
from migrate_ckpt.operations.state_dict_operation import Undo
from migrate_ckpt.optimizers.rules import OptimizerRules
from migrate_ckpt.optimizers.undo import apply_undoably

from .conftest import marked, moments
from .networks import facts
from .test_naming import migrate, refused

HALVES = [split("b.w", ["b.x.w", "b.y.w"])]
JOIN = [concat(["a.w", "b.w"], "ab.w")]


def test_parts_have_steps_of_their_own() -> None:
    """One tensor for three steps would be counted up three times."""
    ckpt = migrate(marked(["a.w", "b.w"]), HALVES)

    steps = [state["step"] for state in ckpt["optimizer"]["state"].values()]
    assert [step.item() for step in steps] == [5, 5, 5]
    assert len({step.untyped_storage().data_ptr() for step in steps}) == 3


def test_parts_are_cut_where_the_parameter_is_and_hold_no_more_than_they_show() -> None:
    ckpt = marked(["a.w", "b.w"])
    moment = torch.arange(16.0).reshape(4, 4)
    ckpt["optimizer"]["state"][1]["exp_avg"] = moment

    migrate(ckpt, [split("b.w", ["b.x.w", "b.y.w"], sizes=[1, 3], dim=1)])

    parts = [ckpt["optimizer"]["state"][position]["exp_avg"] for position in (1, 2)]
    assert torch.equal(parts[0], moment[:, :1])
    assert torch.equal(parts[1], moment[:, 1:])
    assert parts[0].untyped_storage().nbytes() == 4 * 4


def test_parameters_of_different_steps_are_not_joined() -> None:
    ckpt = marked(["a.w", "b.w"])
    ckpt["optimizer"]["state"][1]["step"] = torch.tensor(6.0)

    reason = refused(ckpt, JOIN)

    assert "cannot be made that of 'ab.w': their 'step' are not the same" in reason


def test_frozen_parameter_is_not_joined_with_one_that_learns() -> None:
    ckpt = marked(["a.w", "b.w"])
    del ckpt["optimizer"]["state"][1]

    assert "does not keep the same for each of them" in refused(ckpt, JOIN)


def test_dropped_parameter_takes_its_state_along_and_later_ones_move_up() -> None:
    ckpt = migrate(marked(["a.w", "b.w", "c.w"]), [drop("b.w")])

    assert moments(ckpt) == [0, 2]


def test_cast_leaves_the_moments_their_precision() -> None:
    ckpt = migrate(marked(["a.w", "b.w"]), [cast("bfloat16")])

    assert ckpt["state_dict"]["a.w"].dtype == torch.bfloat16
    assert ckpt["optimizer"]["state"][0]["exp_avg"].dtype == torch.float32


def test_added_parameter_must_be_declared_to_be_one() -> None:
    operations = [add("b.bias", 0.0, shape=[4])]

    with pytest.raises(OptimizerNotFollowed, match=r"'b\.bias' may be a parameter or a buffer"):
        migrate(marked(["a.w", "b.w"]), operations)


def test_added_parameter_has_no_state_where_the_author_says_it_stands() -> None:
    operations = [add("a.bias", 0.0, shape=[4])]

    ckpt = migrate(marked(["a.w", "b.w"]), operations, follow(order_after=["a.w", "a.bias", "b"]))

    assert moments(ckpt) == [0, None, 1]
    assert list(ckpt["state_dict"]) == ["a.w", "a.bias", "b.w"]


def test_added_parameter_of_one_of_two_groups_stands_where_its_list_says() -> None:
    ckpt = marked(["a.w", "b.w"], names=[["b.w"], ["a.w"]])
    order = [["b.w", "b.bias"], ["a.w"]]

    migrate(ckpt, [add("b.bias", 0.0, shape=[4])], follow(order_after=order))

    assert moments(ckpt) == [1, None, 0]
    names = [group["param_names"] for group in ckpt["optimizer"]["param_groups"]]
    assert names == order


@pytest.mark.parametrize(
    ("operation", "rules"),
    [
        (add("bn.num_batches_tracked", 0), follow()),
        (add("mask", 0.0, shape=[4]), follow(buffers=["mask"])),
    ],
    ids=["of integers", "declared"],
)
def test_added_buffer_gets_no_position(operation: Any, rules: Any) -> None:
    assert moments(migrate(marked(["a.w", "b.w"]), [operation], rules)) == [0, 1]


def test_declared_order_may_not_move_a_parameter_to_another_group() -> None:
    ckpt = marked(["a.w", "b.w", "x.w"], names=[["a.w"], ["b.w"], ["x.w"]])

    for order in ([["c"], ["a"], ["x"]], [["a"], ["c", "x"]]):
        with pytest.raises(OptimizerNotFollowed, match="a parameter stays in its group"):
            migrate(copy.deepcopy(ckpt), [rename("b.w", "c.w")], follow(order_after=order))


def adafactor() -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = torch.optim.Adafactor(model.named_parameters())
    model(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    return {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}


def test_rows_and_columns_of_adafactor_cannot_be_split() -> None:
    reason = refused(adafactor(), [split("1.weight", ["1.x", "1.y"])])

    assert "'row_var' is not of the parameter's shape" in reason
    assert 'follow(uncarried="drop")' in reason


def test_rows_and_columns_of_adafactor_are_renamed_and_renumbered() -> None:
    ckpt = adafactor()
    rows = ckpt["optimizer"]["state"][2]["row_var"]

    migrate(ckpt, [rename("1.{n}", "b.{n}"), drop("0.bias")])

    assert ckpt["optimizer"]["state"][1]["row_var"] is rows
    assert ckpt["optimizer"]["param_groups"][0]["param_names"] == ["0.weight", "b.weight", "b.bias"]


def test_author_may_let_the_optimizer_start_afresh_for_what_cannot_be_carried() -> None:
    ckpt = adafactor()
    rules = OptimizerRules((follow(uncarried="drop"),))
    following = rules.begin(ckpt, operations := [split("1.weight", ["1.x", "1.y"])])
    assert following is not None

    following.apply(operations[0], ckpt)
    outcome = following.finish(ckpt)

    assert list(ckpt["optimizer"]["state"]) == [0, 1, 4]
    assert outcome.warnings == (
        "The optimizer starts afresh for '1.x', '1.y', whose state could not be carried.",
    )


def test_blocks_of_another_shape_are_refused() -> None:
    """As those of optimizers that keep their moments in 8 bits: the blocks have a scale each."""
    ckpt = marked(["a.w", "b.w"], absmax=torch.ones(2))

    assert "'absmax' is not of the parameter's shape" in refused(ckpt, HALVES)


def test_value_that_is_no_tensor_and_no_number_is_refused() -> None:
    ckpt = marked(["a.w", "b.w"], preconditioners=[torch.ones(4, 4)])

    assert "'preconditioners' is not of the parameter's shape" in refused(ckpt, HALVES)


def lbfgs() -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = torch.optim.LBFGS(model.named_parameters(), max_iter=2)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (model(torch.ones(3, 4)) ** 2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    return {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}


def test_vector_over_all_parameters_follows_new_names_only() -> None:
    ckpt = lbfgs()
    before = facts(ckpt["optimizer"]["state"])

    migrate(ckpt, [rename("1.{n}", "b.{n}")])
    assert facts(ckpt["optimizer"]["state"]) == before

    with pytest.raises(OptimizerNotFollowed, match="LBFGS, which keeps one vector"):
        migrate(ckpt, [drop("0.bias")])


class TestStates:
    def test_dropped_optimizer_is_gone_and_the_report_says_so(self) -> None:
        ckpt = marked(["a.w", "b.w"])
        rules = OptimizerRules((follow(states="drop"),))
        following = rules.begin(ckpt, HALVES)
        assert following is not None

        following.apply(HALVES[0], ckpt)

        outcome = following.finish(ckpt)
        assert "optimizer" not in ckpt
        assert outcome.warnings == ("The optimizer was dropped, as the migration says: optimizer.",)

    def test_dropped_optimizers_leave_their_list_empty(self) -> None:
        ckpt = marked(["a.w"])
        ckpt["optimizer_states"] = [ckpt.pop("optimizer")]

        migrate(ckpt, [rename("a.w", "b.w")], follow(states="drop"))

        assert ckpt["optimizer_states"] == []

    def test_one_of_several_in_a_list_is_not_dropped_alone(self) -> None:
        ckpt = marked(["a.w"])
        ckpt["optimizer_states"] = [ckpt.pop("optimizer"), marked(["x.w"])["optimizer"]]
        rules = [follow("optimizer_states.0", states="drop"), follow(states="keep")]

        with pytest.raises(OptimizerNotFollowed, match="cannot be dropped alone"):
            migrate(ckpt, [rename("a.w", "b.w")], *rules)

    def test_kept_optimizer_is_not_looked_at(self) -> None:
        ckpt = marked(["a.w", "b.w"])
        before = facts(ckpt["optimizer"])

        migrate(ckpt, HALVES, follow(states="keep"))

        assert facts(ckpt["optimizer"]) == before

    def test_checkpoint_with_an_optimizer_may_be_refused(self) -> None:
        reason = refused(marked(["a.w"]), [set_value("x", 1)], follow(states="refuse"))

        assert "for checkpoints without an optimizer, and this one has optimizer" in reason

    @pytest.mark.parametrize(
        "wrong", [{"states": "burn"}, {"uncarried": "keep"}, {"order_after": []}]
    )
    def test_wrong_word_is_refused_at_once(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"'carry'|'refuse'|An order"):
            follow(**wrong)

    def test_order_of_names_and_lists_is_refused(self) -> None:
        with pytest.raises(ValueError, match="list of such lists"):
            follow(order_after=["a", ["b"]])  # type: ignore[list-item]


class TestUndo:
    def test_dropped_optimizer_cannot_be_put_back(self) -> None:
        rules = OptimizerRules((follow(states="drop"),))

        with pytest.raises(NotInvertible, match="The optimizer was dropped"):
            apply_undoably([rename("a.w", "b.w")], marked(["a.w"]), rules)

    def test_state_that_was_given_up_cannot_be_put_back(self) -> None:
        rules = OptimizerRules((follow(uncarried="drop"),))

        with pytest.raises(NotInvertible, match="was given up"):
            apply_undoably([split("1.weight", ["1.x", "1.y"])], adafactor(), rules)

    def test_parameter_that_was_added_goes_again(self) -> None:
        ckpt = marked(["a.w", "b.w"])
        before = facts(ckpt)
        rules = OptimizerRules((follow(order_after=["a", "c", "b"]),))

        ckpt, back, rules = apply_undoably([add("c", 0.0, like="a.w")], ckpt, rules)  # type: ignore[assignment]
        assert moments(ckpt) == [0, None, 1]
        migrate(ckpt, back, *rules.follows)

        assert facts(ckpt) == before


def test_action_that_says_nothing_of_moments_is_refused() -> None:
    class Transposing:
        reads = True

        def __call__(self, values: Any) -> Any:
            return [values[0].T.contiguous()]

        def inverse(self, values: Any) -> Any:
            return self

        def for_moments(self) -> None:
            return None

    operation = Undo((Move(("b.w",), ("b.w",), Transposing()),), order=("a.w", "b.w"))

    assert "nobody knows what becomes of it" in refused(marked(["a.w", "b.w"]), [operation])


def test_operations_that_touch_no_parameter_leave_the_optimizer_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    ckpt = marked(["a.w", "b.w"])
    before = facts(ckpt["optimizer"])
    # It could not be named, and nobody asks.
    ckpt["state_dict"]["who.knows"] = torch.zeros(3)

    migrate(ckpt, [set_value("epoch", 3)])

    assert facts(ckpt["optimizer"]) == before


def test_copies_of_full_precision_by_position_are_refused_where_positions_change() -> None:
    """As apex saves them: the parameters again, in 32 bits, in lists beside the optimizer."""
    ckpt = marked(["a.w", "b.w"])
    ckpt["optimizer"] = {
        "optimizer_state_dict": ckpt["optimizer"],
        "fp32_from_fp16": [[torch.ones(4, 4), torch.ones(4, 4)]],
    }

    migrate(ckpt, [rename("b.w", "c.w")])

    with pytest.raises(OptimizerNotFollowed, match="copies of the parameters by position"):
        migrate(ckpt, [split("c.w", ["c.x.w", "c.y.w"])])


class TestUntying:
    def ckpt(self) -> dict[str, Any]:
        ckpt = marked(["a.w", "b.w"])
        ckpt["state_dict"]["c.w"] = ckpt["state_dict"]["b.w"]
        return ckpt

    def test_one_state_for_two_parameters_is_refused(self) -> None:
        reason = refused(self.ckpt(), [untie("c.w")])

        assert "state of 'b.w', 'c.w' cannot be made" in reason

    def test_both_start_afresh_where_the_author_says_so(self) -> None:
        ckpt = migrate(self.ckpt(), [untie("c.w")], follow(uncarried="drop"))

        assert ckpt["optimizer"]["param_groups"][0]["params"] == [0, 1, 2]
        assert moments(ckpt) == [0.0, None, None]

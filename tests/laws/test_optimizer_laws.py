"""What holds for every optimizer that follows: each moment stands at the position of its parameter in torch."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from migrate_ckpt import OperationError
from migrate_ckpt.operations import (
    Operation,
    add_prefix,
    concat,
    drop,
    follow,
    reindex,
    rename,
    split,
    strip_prefix,
)
from migrate_ckpt.optimizers.rules import OptimizerRules
from migrate_ckpt.optimizers.undo import apply_undoably

OPERATIONS: list[Operation] = [
    rename("head.{n}", "out.{n}", missing="skip"),
    rename("scale", "layers.scale", missing="skip"),
    rename({"a.{n}": "b.{n}", "b.{n}": "a.{n}"}, missing="skip"),
    rename("layers.{i}.norm.{n}", "layers.{i}.ln.{n}", missing="skip"),
    rename("layers.{i}.qkv.{n}", "qkv.{i}.{n}", missing="skip"),
    strip_prefix("net", missing="skip"),
    add_prefix("net"),
    reindex("layers.{i}", {0: 1, 1: 0}, missing="skip"),
    reindex("layers.{i}", shift=1, missing="skip"),
    split("layers.{i}.qkv.{n}", [f"layers.{{i}}.{x}.{{n}}" for x in "qkv"], missing="skip"),
    concat([f"layers.{{i}}.{x}.{{n}}" for x in "qkv"], "layers.{i}.qkv.{n}", missing="skip"),
    split("head.{n}", ["x.{n}", "head.{n}"], sizes=[2, 4], missing="skip"),
    drop("layers.{i}.norm.{n}", missing="skip"),
    drop("a.bias", missing="skip"),
]
MODULES = ["a", "b", "head", *(f"layers.{i}.{name}" for i in (0, 1) for name in ("norm", "qkv"))]
KEYS = ["scale", "layers.scale", *(f"{m}.{n}" for m in MODULES for n in ("weight", "bias"))]


def module_of(state_dict: dict[str, Any]) -> nn.Module:
    """A module whose parameters are registered in the order of the keys, with those that are tied."""
    root = nn.Module()
    parameters: dict[int, nn.Parameter] = {}
    for key, tensor in state_dict.items():
        module = root
        *above, name = key.split(".")
        for part in above:
            if not hasattr(module, part):
                module.add_module(part, nn.Module())
            module = getattr(module, part)
        parameter = parameters.setdefault(tensor.data_ptr(), nn.Parameter(tensor))
        module.register_parameter(name, parameter)
    return root


@st.composite
def networks(draw: st.DrawFn) -> nn.Module:
    """A network with any of the keys in any order of registration, some of them tied."""
    keys = draw(st.lists(st.sampled_from(KEYS), unique=True, min_size=1))
    tensors: dict[str, torch.Tensor] = {}
    for number, key in enumerate(keys):
        tie = draw(st.sampled_from([None, None, None, *tensors]))
        tensors[key] = tensors[tie] if tie else torch.arange(36.0).reshape(6, 6) + 100 * number
    return module_of(tensors)


def checkpoint(model: nn.Module, groups: int, *, is_named: bool) -> dict[str, Any]:
    """What Adam would save after a step, with each parameter itself in the place of its moment."""
    parameters = list(model.named_parameters())
    listed: list[Any] = [
        {"params": group if is_named else [p for _, p in group]}
        for group in (parameters[number::groups] for number in range(groups))
        if group
    ]
    optimizer = torch.optim.Adam(listed)
    for _, parameter in parameters:
        optimizer.state[parameter] = {
            "step": torch.tensor(3.0),
            "exp_avg": parameter.detach().clone(),
            "exp_avg_sq": -parameter.detach(),
        }
    return {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}


def apply(ckpt: Any, operations: list[Operation], rules: OptimizerRules) -> Any:
    try:
        return apply_undoably(operations, ckpt, rules)
    except OperationError:
        assume(False)
        raise


def facts(ckpt: Any) -> Any:
    def plain(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.tolist()
        if isinstance(value, dict):
            return [(key, plain(item)) for key, item in value.items()]
        return [plain(item) for item in value] if isinstance(value, list) else value

    return plain(ckpt), list(getattr(ckpt["state_dict"], "_metadata", OrderedDict()).items())


LISTS = st.lists(st.sampled_from(OPERATIONS), min_size=1, max_size=3)


@settings(max_examples=150, deadline=None)
@given(model=networks(), operations=LISTS, is_named=st.booleans(), steps=st.integers(1, 2))
def test_moment_at_a_position_is_that_of_the_parameter_which_torch_has_there(
    model: nn.Module, operations: list[Operation], is_named: bool, steps: int
) -> None:
    ckpt = checkpoint(model, 1, is_named=is_named)
    for _ in range(steps):
        # The second time nothing is known but what the first has left behind.
        ckpt, _, _ = apply(ckpt, operations, OptimizerRules())

    assume(ckpt["state_dict"])
    refactored = module_of(ckpt["state_dict"])
    optimizer = torch.optim.Adam(refactored.parameters())
    optimizer.load_state_dict(ckpt["optimizer"])
    for name, parameter in refactored.named_parameters():
        assert torch.equal(optimizer.state[parameter]["exp_avg"], parameter), name
        assert torch.equal(optimizer.state[parameter]["exp_avg_sq"], -parameter), name
    if is_named:
        names = [name for name, _ in refactored.named_parameters()]
        assert ckpt["optimizer"]["param_groups"][0]["param_names"] == names


@settings(max_examples=100, deadline=None)
@given(model=networks(), operations=LISTS, data=st.data())
def test_parameters_that_the_optimizer_does_not_have_lead_to_no_wrong_position(
    model: nn.Module, operations: list[Operation], data: st.DataObject
) -> None:
    """Nobody knows which they are; what is not refused must be right all the same."""
    parameters = list(model.parameters())
    left_out = data.draw(st.sets(st.sampled_from(range(len(parameters))), min_size=1))
    ckpt = checkpoint(model, 1, is_named=False)
    held = ckpt["optimizer"]
    kept = [place for place in range(len(parameters)) if place not in left_out]
    held["state"] = {new: held["state"][old] for new, old in enumerate(kept)}
    held["param_groups"][0]["params"] = list(range(len(kept)))
    hundreds = [parameter.detach().min().item() // 100 for parameter in parameters]
    learning = {hundreds[place] for place in kept}

    ckpt, _, _ = apply(ckpt, operations, OptimizerRules())

    expected = [
        parameter
        for parameter in module_of(ckpt["state_dict"]).parameters()
        if parameter.detach().min().item() // 100 in learning
    ]
    moments = [held["state"][position]["exp_avg"] for position in range(len(kept))]
    assert len(moments) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(moments, expected, strict=True))


@settings(max_examples=100, deadline=None)
@given(model=networks(), operations=LISTS, is_named=st.booleans(), data=st.data())
def test_declared_order_is_that_of_the_states_and_of_the_keys(
    model: nn.Module, operations: list[Operation], is_named: bool, data: st.DataObject
) -> None:
    ckpt = checkpoint(model, 1, is_named=is_named)
    expected = copy.deepcopy(ckpt["state_dict"])
    try:
        for operation in operations:
            operation({"state_dict": expected})
    except OperationError:
        assume(False)
    tied: dict[int, list[str]] = {}
    for key, tensor in expected.items():
        tied.setdefault(tensor.data_ptr(), []).append(key)
    order = data.draw(st.permutations([data.draw(st.sampled_from(keys)) for keys in tied.values()]))
    assume(order)

    ckpt, _, _ = apply(ckpt, operations, OptimizerRules((follow(order_after=order),)))

    held = ckpt["optimizer"]
    for position, key in enumerate(order):
        assert torch.equal(held["state"][position]["exp_avg"], expected[key])
    assert [key for key in ckpt["state_dict"] if key in order] == order or len(order) < len(
        expected
    )


@settings(max_examples=100, deadline=None)
@given(model=networks(), operations=LISTS, groups=st.integers(1, 3))
def test_names_lead_to_the_states_whatever_the_groups(
    model: nn.Module, operations: list[Operation], groups: int
) -> None:
    ckpt = checkpoint(model, groups, is_named=True)

    ckpt, _, _ = apply(ckpt, operations, OptimizerRules())

    held = ckpt["optimizer"]
    for group in held["param_groups"]:
        for position, name in zip(group["params"], group["param_names"], strict=True):
            parameter = ckpt["state_dict"][name]
            assert torch.equal(held["state"][position]["exp_avg"], parameter)
    positions = [position for group in held["param_groups"] for position in group["params"]]
    assert positions == list(range(len(held["state"])))


@settings(max_examples=100, deadline=None)
@given(model=networks(), operations=LISTS, groups=st.integers(1, 3))
def test_way_back_leads_to_what_was_there(
    model: nn.Module, operations: list[Operation], groups: int
) -> None:
    ckpt = checkpoint(model, groups, is_named=True)
    before = facts(ckpt)

    ckpt, inverses, back = apply(ckpt, operations, OptimizerRules())
    ckpt, _, _ = apply_undoably(inverses, ckpt, back)

    assert facts(ckpt) == before

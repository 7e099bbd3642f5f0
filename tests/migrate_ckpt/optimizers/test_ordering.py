from __future__ import annotations

import re

import pytest
from torch import nn

from migrate_ckpt.errors import OptimizerNotFollowed
from migrate_ckpt.optimizers.ordering import (
    declared_groups,
    doubt_of_change,
    doubt_of_tree,
    tree_order,
)

from .networks import Old


def test_order_of_the_tree_is_that_of_torch() -> None:
    model = nn.Module()
    model.a = nn.Module()
    model.a.inner = Old()
    model.a.scale = nn.Parameter(nn.Linear(1, 1).weight)
    model.b = nn.MultiheadAttention(4, 2)
    keys = [name for name, _ in model.named_parameters()]

    assert tree_order(keys) == keys
    # A module's own parameters come first, wherever they stand among those of its children.
    assert tree_order(sorted(keys, key=lambda key: key == "a.scale")) == keys


def test_modules_that_alternate_are_brought_together() -> None:
    keys = ["first.w", "q.w", "k.w", "q.b", "k.b", "last.w"]

    assert tree_order(keys) == ["first.w", "q.w", "q.b", "k.w", "k.b", "last.w"]
    assert doubt_of_tree(keys) is None


def test_module_on_both_sides_of_another_is_a_doubt() -> None:
    assert doubt_of_tree(["net.0.w", "conv.w", "net.1.w"]) == (
        "the keys of 'net' stand on both sides of those of 'conv'"
    )


@pytest.mark.parametrize(
    ("before", "after", "doubt"),
    [
        (["a.w", "b.w"], ["b.w", "a.w"], "'b.w' and 'a.w' have changed places"),
        (["a.w", "b.w"], ["n.1.w", "n.0.w"], "the numbers below 'n' are not in their order"),
        (["p.0", "p.1"], ["q.1", "q.0"], "the numbers below 'q' are not in their order"),
        (["1.w", "0.w"], ["b.w", "a.w"], None),
        (["n.1.w", "n.0.w", "x.w"], ["n.1.w", "n.0.w", "y.w"], None),
        (["n.0.w", "n.1.w", "n.2.w"], ["n.1.w", "n.2.w", "n.3.w"], None),
        (["a.w", "b.w"], ["z.w", "b.w"], None),
    ],
    ids=[
        "swapped",
        "numbers",
        "numbers of parameters",
        "no numbers any more",
        "as before",
        "shifted",
        "renamed",
    ],
)
def test_change_of_the_order_is_doubted_where_the_keys_speak_against_it(
    before: list[str], after: list[str], doubt: str | None
) -> None:
    found = doubt_of_change(before, after)

    assert (found is None) is (doubt is None)
    assert (found or "").startswith(doubt or "")


def listed(*entries: str | re.Pattern[str], keys: list[str]) -> list[str]:
    [group] = declared_groups((entries,), [(key,) for key in keys], "order", names_all=True)
    return [key for (key,) in group]


def test_declared_modules_bring_all_that_is_below_them() -> None:
    keys = ["layers.10.w", "layers.9.w", "head.w", "head.b", "scale"]

    assert listed("scale", "head", "layers.{i}", keys=keys) == [
        *("scale", "head.w", "head.b", "layers.9.w", "layers.10.w")
    ]


def test_declared_key_is_meant_before_a_module_that_has_it() -> None:
    keys = ["head.w", "head.b", "x.w"]

    assert listed("head", "x", "head.w", keys=keys) == ["head.b", "x.w", "head.w"]
    assert listed(re.compile(r".*\.b"), "head", "x", keys=keys) == ["head.b", "head.w", "x.w"]


def test_parameter_that_a_declared_order_leaves_out_is_named() -> None:
    with pytest.raises(OptimizerNotFollowed, match=r"order does not say where 'x\.w' stands"):
        listed("head", keys=["head.w", "x.w"])


def test_entry_of_a_declared_order_that_means_nothing_is_named() -> None:
    with pytest.raises(OptimizerNotFollowed, match="order lists 'heads', which is none"):
        listed("head", "heads", keys=["head.w"])


def test_tied_parameter_is_meant_by_any_of_its_keys() -> None:
    tied = ("embed.w", "head.w")

    [group] = declared_groups((("x", "head"),), [tied, ("x.w",)], "order", names_all=True)

    assert group == [("x.w",), tied]

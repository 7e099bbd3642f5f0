from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch

from migrate_ckpt import KeyCollision, OperationError, SectionNotFound
from migrate_ckpt.operations import unwrap, wrap

HISTORY = {"_migrate-ckpt-migrations": ["0001_x"]}


def test_section_that_stands_alone_becomes_the_checkpoint_with_its_versions() -> None:
    state_dict = torch.nn.BatchNorm1d(2).state_dict()

    changed = unwrap("state_dict")({"state_dict": state_dict, **HISTORY})

    assert changed is state_dict
    assert changed._metadata == {"": {"version": 2}}


def test_items_of_a_section_stand_in_its_place_beside_the_others() -> None:
    ckpt = {"epoch": 1, "extra": {"a": 2, "b": 3}, "z": 4}

    assert list(unwrap("extra")(ckpt).items()) == [("epoch", 1), ("a", 2), ("b", 3), ("z", 4)]


def test_checkpoint_is_put_under_a_name_and_its_history_stays_at_the_top() -> None:
    ckpt = {"w": torch.ones(1), **HISTORY}

    changed = wrap("state_dict")(ckpt)

    assert changed == {"state_dict": {"w": ckpt["w"]}, **HISTORY}


@pytest.mark.parametrize(
    "ckpt",
    [
        {"state_dict": OrderedDict(a=1, b=2), **HISTORY},
        {"epoch": 1, "state_dict": {"a": 1, "b": 2}, "z": 3},
    ],
    ids=["alone", "among others"],
)
def test_unwrapping_and_its_inverse_are_the_identity(ckpt: dict[str, Any]) -> None:
    section, before = ckpt["state_dict"], list(ckpt.items())
    operation = unwrap("state_dict")
    (inverse,) = operation.inverse(ckpt)

    back = inverse(operation(ckpt))

    assert back is ckpt
    assert list(back.items()) == before
    assert back["state_dict"] is section


@pytest.mark.parametrize(
    ("ckpt", "error", "message"),
    [
        ({"a": 1}, SectionNotFound, "no section 's'"),
        ({"s": 1}, SectionNotFound, "is a int, not a state dict"),
        ({"s": {"a": 1}, "a": 2}, KeyCollision, "'a' would stand beside another"),
        ({"s": torch.nn.Linear(1, 1).state_dict(), "a": 2}, OperationError, "versions of s cannot"),
    ],
    ids=["not there", "no mapping", "collision", "versions"],
)
def test_what_cannot_be_unwrapped_is_an_error(
    ckpt: dict[str, Any], error: type[OperationError], message: str
) -> None:
    before = list(ckpt.items())

    with pytest.raises(error, match=message):
        unwrap("s")(ckpt)

    assert list(ckpt.items()) == before

"""Ties: one memory under several keys, made and undone, in memory and in files."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from migrate_ckpt import KeysNotFound, OperationError, read_checkpoint, write_checkpoint
from migrate_ckpt.operations import tie, untie


def are_tied(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.untyped_storage()._cdata == other.untyped_storage()._cdata


def weights(**also: torch.Tensor) -> OrderedDict[str, Any]:
    made: OrderedDict[str, Any] = OrderedDict({"embed.weight": torch.arange(6.0).reshape(2, 3)})
    made["fc.weight"] = torch.ones(2)
    made.update(also)
    return made


def test_key_that_is_not_there_is_added_and_shows_the_same_memory() -> None:
    state_dict = weights()

    tie("head.weight", "embed.weight")({"state_dict": state_dict})

    assert list(state_dict) == ["embed.weight", "fc.weight", "head.weight"]
    assert are_tied(state_dict["head.weight"], state_dict["embed.weight"])


def test_equal_tensors_become_one_in_their_places_and_the_file_holds_it_once(
    tmp_path: Path,
) -> None:
    state_dict = weights()
    state_dict["head.weight"] = state_dict["embed.weight"].clone()
    state_dict._metadata = OrderedDict(  # type: ignore[attr-defined]
        {"embed": {"version": 1}, "head": {"version": 2}}
    )

    tie("head.weight", "embed.weight")({"state_dict": state_dict})

    assert list(state_dict) == ["embed.weight", "fc.weight", "head.weight"]
    assert state_dict._metadata == {"embed": {"version": 1}, "head": {"version": 2}}  # type: ignore[attr-defined]
    write_checkpoint({"state_dict": state_dict}, tmp_path / "tied.ckpt")
    read = read_checkpoint(tmp_path / "tied.ckpt")["state_dict"]
    assert are_tied(read["embed.weight"], read["head.weight"])


@pytest.mark.parametrize(
    "other",
    [
        torch.zeros(2, 3),
        torch.arange(6.0).reshape(3, 2),
        torch.arange(6).reshape(2, 3),
        torch.tensor([[-0.0, 1, 2], [3, 4, 5]]),
    ],
    ids=["values", "shape", "dtype", "the sign of a zero"],
)
def test_tensors_that_differ_are_not_tied(other: torch.Tensor) -> None:
    state_dict = weights(**{"head.weight": other})

    with pytest.raises(OperationError, match="they differ, and tied"):
        tie("head.weight", "embed.weight")({"state_dict": state_dict})

    assert state_dict["head.weight"] is other


def test_not_a_number_equals_itself_here() -> None:
    state_dict = {"a": torch.tensor([float("nan")]), "b": torch.tensor([float("nan")])}

    tie("b", "a")({"state_dict": state_dict})

    assert are_tied(state_dict["a"], state_dict["b"])


def test_what_is_tied_already_stays() -> None:
    state_dict = weights()
    state_dict["head.weight"] = state_dict["embed.weight"]
    before = dict(state_dict)

    tie("head.weight", "embed.weight")({"state_dict": state_dict})

    assert all(state_dict[key] is value for key, value in before.items())


def test_untied_key_has_memory_of_its_own_and_keeps_its_place() -> None:
    state_dict = weights()
    state_dict["head.weight"] = state_dict["embed.weight"]
    state_dict["last"] = torch.ones(1)

    untie("embed.weight")({"state_dict": state_dict})

    assert list(state_dict) == ["embed.weight", "fc.weight", "head.weight", "last"]
    assert not are_tied(state_dict["embed.weight"], state_dict["head.weight"])
    assert torch.equal(state_dict["embed.weight"], state_dict["head.weight"])


def test_of_all_keys_of_one_memory_the_first_keeps_it() -> None:
    shared = torch.ones(3)
    state_dict = {"a": shared, "b": shared, "c": shared}

    untie("{name}")({"state_dict": state_dict})

    assert state_dict["a"] is shared
    assert len({value.untyped_storage()._cdata for value in state_dict.values()}) == 3


@pytest.mark.parametrize("operation", [tie("x", "y"), untie("x")], ids=str)
def test_keys_that_are_not_there_are_an_error(operation: Any) -> None:
    with pytest.raises(KeysNotFound):
        operation({"state_dict": weights()})


@pytest.mark.parametrize(
    ("templates", "reason"),
    [(("a", "a"), "'a' twice"), (("a.{i}", "b"), "the same placeholders")],
    ids=str,
)
def test_wrong_templates_are_refused(templates: tuple[str, str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        tie(*templates)

"""The same changes on dicts, namespaces, configurations, and on the foreign objects that they become in a file."""

from __future__ import annotations

import argparse
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from migrate_ckpt import (
    KeyCollision,
    OperationError,
    SectionNotFound,
    read_checkpoint,
    write_checkpoint,
)
from migrate_ckpt.operations import Operation, drop_value, move, rename_value, set_value

HOLDERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "dict": dict,
    "Namespace": lambda items: argparse.Namespace(**items),
    "SimpleNamespace": lambda items: types.SimpleNamespace(**items),
    "DictConfig": OmegaConf.create,
}
Read = Callable[[Any], Any]


def names_and_values(holder: Any) -> list[tuple[str, Any]]:
    if isinstance(holder, DictConfig):
        return list(OmegaConf.to_container(holder).items())  # type: ignore[union-attr,arg-type]
    return list((holder if isinstance(holder, dict) else vars(holder)).items())


@pytest.fixture(params=["real", "foreign"])
def apply(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Any]:
    """Return a function that applies operations to real objects, or by way of a file to foreign ones."""

    def apply_real(ckpt: Any, *operations: Operation) -> Any:
        for operation in operations:
            ckpt = operation(ckpt)
        return ckpt

    def apply_foreign(ckpt: Any, *operations: Operation) -> Any:
        torch.save(ckpt, tmp_path / "old.ckpt")
        changed = apply_real(read_checkpoint(tmp_path / "old.ckpt"), *operations)
        write_checkpoint(changed, tmp_path / "new.ckpt")
        return torch.load(tmp_path / "new.ckpt", weights_only=False)

    return apply_real if request.param == "real" else apply_foreign


@pytest.mark.parametrize("holder", HOLDERS.values(), ids=HOLDERS.keys())
def test_hyper_parameters_are_set_renamed_and_dropped(
    holder: Callable[[dict[str, Any]], Any], apply: Callable[..., Any]
) -> None:
    ckpt = {"hp": holder({"lr": 0.1, "old": 1, "depth": 3})}

    changed = apply(
        ckpt,
        rename_value("hp.lr", "learning_rate"),
        drop_value("hp.old"),
        set_value("hp.depth", 4),
        set_value("hp.width", 8),
    )

    assert type(changed["hp"]) is type(ckpt["hp"])
    assert names_and_values(changed["hp"]) == [("learning_rate", 0.1), ("depth", 4), ("width", 8)]


def test_path_leads_through_holders_of_all_kinds(apply: Callable[..., Any]) -> None:
    config = OmegaConf.create({"model": {"dim": 1}, "seed": 0})
    ckpt = {"args": argparse.Namespace(configs=[{"cfg": config}])}

    changed = apply(ckpt, set_value("args.configs.0.cfg.model.dim", 2))

    assert changed["args"].configs[0]["cfg"].model.dim == 2


def test_renamed_configuration_still_knows_where_it_is(apply: Callable[..., Any]) -> None:
    ckpt = {"cfg": OmegaConf.create({"a": {"x": 1}, "b": "${a.x}", "c": 1})}

    changed = apply(ckpt, rename_value("cfg.c", "d"), rename_value("cfg.a", "model"))

    assert changed["cfg"]._get_node("d")._key() == "d"
    assert changed["cfg"].model._get_full_key("x") == "model.x"


@pytest.mark.parametrize("holder", HOLDERS.values(), ids=HOLDERS.keys())
@pytest.mark.parametrize(
    "operation",
    [
        rename_value("hp.lr", "learning_rate"),
        drop_value("hp.lr"),
        set_value("hp.lr", 7),
        set_value("hp.new", 7),
        move("hp.lr", "lr"),
        drop_value("hp.absent", missing="skip"),
    ],
    ids=str,
)
def test_inverse_brings_names_values_and_order_back(
    operation: Operation, holder: Callable[[dict[str, Any]], Any]
) -> None:
    ckpt = {"hp": holder({"a": 1, "lr": 0.1, "b": None}), "epoch": 3}
    inverse = operation.inverse(ckpt)

    operation(ckpt)
    for step in inverse:
        step(ckpt)

    assert names_and_values(ckpt["hp"]) == [("a", 1), ("lr", 0.1), ("b", None)]
    assert list(ckpt) == ["hp", "epoch"]


def test_moved_section_is_the_same_object() -> None:
    ema = {"w": torch.ones(1)}
    ckpt = {"extra": {"ema": ema, "step": 1}}

    move("extra.ema", "ema")(ckpt)

    assert ckpt["ema"] is ema
    assert ckpt["extra"] == {"step": 1}


def test_each_checkpoint_gets_a_value_of_its_own() -> None:
    operation = set_value("betas", [0.9])
    one, other = operation({}), operation({})

    one["betas"].append(1)

    assert other["betas"] == [0.9]


@pytest.mark.parametrize(
    ("operation", "error", "message"),
    [
        (rename_value("hp.x", "y"), SectionNotFound, r"no 'hp\.x': hp has lr, depth"),
        (set_value("config.lr", 1), SectionNotFound, "no 'config': the checkpoint itself has hp"),
        (drop_value("hp.lr.x"), SectionNotFound, r"hp\.lr is a float, in which nothing has a name"),
        (rename_value("hp.lr", "depth"), KeyCollision, r"at 'hp\.depth' already"),
        (move("hp.lr", "hp.depth"), KeyCollision, r"at 'hp\.depth' already"),
        (move("hp", "hp.hp"), OperationError, "into itself"),
    ],
    ids=str,
)
def test_path_that_leads_nowhere_is_an_error_that_says_what_is_there(
    operation: Operation, error: type[OperationError], message: str
) -> None:
    ckpt = {"hp": {"lr": 0.1, "depth": 1}}

    with pytest.raises(error, match=message) as caught:
        operation(ckpt)

    assert ckpt == {"hp": {"lr": 0.1, "depth": 1}}
    assert caught.value.operation == str(operation)


def test_configuration_takes_plain_values_only(apply: Callable[..., Any]) -> None:
    with pytest.raises(OperationError, match="only numbers, texts and None"):
        apply({"cfg": OmegaConf.create({"a": 1})}, set_value("cfg.a", [1]))


@pytest.mark.parametrize("path", ["a..b", ("a", ""), "."])
def test_path_with_an_empty_name_is_refused_when_it_is_written(path: Any) -> None:
    with pytest.raises(ValueError, match="empty name"):
        drop_value(path)

from __future__ import annotations

import argparse
import collections
import datetime
import pathlib
import types
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from omegaconf import OmegaConf

from migrate_ckpt import NotInvertible, OperationError, read_checkpoint, write_checkpoint
from migrate_ckpt.operations import normalise

VALUES: dict[str, tuple[Any, Any]] = {
    "float64": (numpy.float64(1.5), 1.5),
    "int8": (numpy.int8(-3), -3),
    "bool": (numpy.bool_(True), True),
    "complex64": (numpy.complex64(1 + 2j), 1 + 2j),
    "text": (numpy.str_("hi"), "hi"),
    "bytes": (numpy.bytes_(b"xy"), b"xy"),
    "array": (numpy.arange(6).reshape(2, 3), torch.arange(6).reshape(2, 3)),
    "fortran array": (numpy.asfortranarray(numpy.arange(6.0).reshape(2, 3)), torch.arange(6.0).double().reshape(2, 3)),
    "big-endian array": (numpy.array([1, 258], dtype=">i4"), torch.tensor([1, 258], dtype=torch.int32)),
    "big-endian complex array": (numpy.array([1 + 2j], dtype=">c16"), torch.tensor([1 + 2j], dtype=torch.complex128)),
    "empty array": (numpy.zeros((0, 3), dtype="f4"), torch.zeros(0, 3)),
    "scalar array": (numpy.array(7, dtype="u1"), torch.tensor(7, dtype=torch.uint8)),
    "array of texts": (numpy.array([["ab", "c"]]), [["ab", "c"]]),
    "path": (pathlib.PurePosixPath("/data/x.txt"), "/data/x.txt"),
    "real path": (pathlib.Path("a/b"), "a/b"),
    "windows path": (pathlib.PureWindowsPath("c:/a/b"), "c:\\a\\b"),
    "Namespace": (argparse.Namespace(lr=numpy.float32(0.5), out=pathlib.Path("x")), {"lr": 0.5, "out": "x"}),
    "SimpleNamespace": (types.SimpleNamespace(a=argparse.Namespace(b=1)), {"a": {"b": 1}}),
    "DictConfig": (
        OmegaConf.create({"a": {"b": [1, {"c": None}]}, "d": "${a.b}"}),
        {"a": {"b": [1, {"c": None}]}, "d": "${a.b}"},
    ),
    "ListConfig": (OmegaConf.create([1, "x"]), [1, "x"]),
    "defaultdict": (collections.defaultdict(list, {"a": [numpy.int64(1)]}), {"a": [1]}),
    "empty defaultdict": (collections.defaultdict(list), {}),
    "deque": (collections.deque([1, 2], maxlen=3), [1, 2]),
    "frozenset": (frozenset({1, 2}), {1, 2}),
    "keys": ({numpy.int64(3): {"x"}}, {3: {"x"}}),
    "tuple": ((numpy.int64(3), [numpy.int64(4)]), (3, [4])),
    "Counter": (collections.Counter("aab"), {"a": 2, "b": 1}),
}  # fmt: skip


def equal(one: Any, other: Any) -> bool:
    if isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and bool(one == other)


@pytest.mark.parametrize(("value", "plain"), VALUES.values(), ids=VALUES.keys())
def test_value_becomes_plain_whether_it_is_real_or_foreign(
    value: Any, plain: Any, tmp_path: Path
) -> None:
    torch.save({"value": value}, tmp_path / "old.ckpt")
    foreign = read_checkpoint(tmp_path / "old.ckpt")

    write_checkpoint(normalise()(foreign), tmp_path / "new.ckpt")

    assert equal(torch.load(tmp_path / "new.ckpt", weights_only=True)["value"], plain)
    assert equal(normalise()({"value": value})["value"], plain)


def test_state_dict_keeps_its_tensors_order_and_versions(tmp_path: Path) -> None:
    model = torch.nn.BatchNorm1d(2)
    ckpt: dict[str, Any] = {"state_dict": model.state_dict(), "lr": numpy.float64(1)}
    before = dict(ckpt["state_dict"])

    changed = normalise()(ckpt)

    assert all(changed["state_dict"][key] is value for key, value in before.items())
    assert changed["state_dict"]._metadata == {"": {"version": 2}}


def test_what_is_shared_stays_shared_and_cycles_end() -> None:
    shared = argparse.Namespace(a=1)
    shared.me = shared
    loop: list[Any] = [shared]
    loop.append(loop)

    changed = normalise()({"one": shared, "two": [shared], "loop": loop})

    assert changed["one"] is changed["two"][0] is changed["one"]["me"] is changed["loop"][0]
    assert changed["loop"][1] is changed["loop"]


@pytest.fixture(params=["real", "foreign"])
def dated(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    ckpt: dict[str, Any] = {
        "lr": numpy.float64(1),
        "logs": [{"at": datetime.date(2020, 1, 1)}],
        "config": Config(lr=numpy.float64(2)),
    }
    if request.param == "real":
        return ckpt
    torch.save(ckpt, tmp_path / "dated.ckpt")
    return dict(read_checkpoint(tmp_path / "dated.ckpt"))


class Config:
    def __init__(self, **items: Any) -> None:
        self.__dict__.update(items)


def test_what_has_no_plain_value_is_named_with_its_place_and_nothing_changes(
    dated: dict[str, Any],
) -> None:
    before = dict(dated)

    with pytest.raises(
        OperationError, match=r"logs\.0\.at \(datetime\.date\), config \(.*Config\)"
    ) as caught:
        normalise()(dated)

    assert caught.value.keys == ("logs.0.at", "config")
    assert all(dated[key] is value for key, value in before.items())


def test_objects_of_named_classes_become_dicts_and_others_may_be_kept(
    dated: dict[str, Any],
) -> None:
    date = dated["logs"][0]["at"]

    changed = normalise(classes=["*.Config"], unknown="keep")(dated)

    assert changed["config"] == {"lr": 2.0}
    assert changed["lr"] == 1.0
    assert changed["logs"][0]["at"] is date


def test_normalising_can_be_undone_only_where_it_does_nothing() -> None:
    assert normalise().inverse({"state_dict": {"w": torch.ones(1)}, "x": [1, (2, None)]}) == ()
    with pytest.raises(NotInvertible):
        normalise().inverse({"lr": numpy.float64(1)})

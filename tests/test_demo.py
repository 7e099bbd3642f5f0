"""The demo and the example migrations it shows."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def migration(name: str) -> ModuleType:
    path = REPOSITORY / "migrations" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"example_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def strip_prefix() -> ModuleType:
    return migration("0001_strip_the_model_prefix")


@pytest.fixture
def rename_learning_rate() -> ModuleType:
    return migration("0002_rename_learning_rate")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(["model.a", "model.b"], ["a", "b"], id="every-key"),
        pytest.param(["x", "model.a", "y"], ["x", "a", "y"], id="order-stays"),
        pytest.param(
            ["model_b.a", "my.model.a"], ["model_b.a", "my.model.a"], id="whole-first-name"
        ),
        pytest.param(["a"], ["a"], id="nothing-to-strip"),
    ],
)
def test_prefix_is_stripped(strip_prefix: ModuleType, before: list[str], after: list[str]) -> None:
    weights = OrderedDict.fromkeys(before)

    ckpt = strip_prefix.handle({"state_dict": weights})

    assert list(ckpt["state_dict"]) == after


def test_module_versions_follow_the_names_of_the_weights(strip_prefix: ModuleType) -> None:
    weights = OrderedDict.fromkeys(["model.norm.weight"])
    weights._metadata = OrderedDict({"": {}, "model": {"version": 1}, "model.norm": {"version": 2}})

    ckpt = strip_prefix.handle({"state_dict": weights})

    assert ckpt["state_dict"]._metadata == {"": {"version": 1}, "norm": {"version": 2}}


def test_two_weights_never_become_one(strip_prefix: ModuleType) -> None:
    with pytest.raises(ValueError, match="both with and without the prefix"):
        strip_prefix.handle({"state_dict": {"a": 1, "model.a": 2}})


def test_learning_rate_is_renamed_in_a_namespace(rename_learning_rate: ModuleType) -> None:
    ckpt = rename_learning_rate.handle({"hyper_parameters": Namespace(lr=0.1, seed=3)})

    assert vars(ckpt["hyper_parameters"]) == {"learning_rate": 0.1, "seed": 3}


@pytest.mark.parametrize(
    "ckpt", [{}, {"hyper_parameters": Namespace(seed=3)}], ids=["none", "no-lr"]
)
def test_checkpoint_without_a_learning_rate_stays_as_it_is(
    rename_learning_rate: ModuleType, ckpt: dict
) -> None:
    before = dict(ckpt)

    assert rename_learning_rate.handle(ckpt) == before


@pytest.mark.acceptance
def test_demo_shows_the_whole_way_and_succeeds() -> None:
    done = subprocess.run(
        [sys.executable, "docs/demo.py"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert done.returncode == 0, done.stderr + done.stdout
    assert "--fail-with-body -F file=@old.ckpt" in done.stdout
    assert '"0001_strip_the_model_prefix"' in done.stdout
    assert "DIFFERENT" not in done.stdout

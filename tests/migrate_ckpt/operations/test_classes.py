from __future__ import annotations

import copy
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from migrate_ckpt import KeysNotFound, OperationError, read_checkpoint, recipe, write_checkpoint
from migrate_ckpt.operations import rename_class


@pytest.fixture
def packages() -> Iterator[Any]:
    """Two packages: the classes of the old one in a file are those of the new one in memory."""
    old, new = types.ModuleType("old_package"), types.ModuleType("new_package")
    for module, names in ((old, ["Config", "Other"]), (new, ["Settings", "Config", "Other"])):
        for name in names:
            setattr(module, name, type(name, (), {"__module__": module.__name__}))
        sys.modules[module.__name__] = module
    yield old, new
    for module in (old, new):
        sys.modules.pop(module.__name__, None)


@pytest.fixture
def file(packages: Any, tmp_path: Path) -> Path:
    old, _ = packages
    config = old.Config()
    config.lr, config.kind = 0.1, old.Config
    other = old.Other()
    torch.save({"config": config, "all": [config, (other, {"x": config})]}, tmp_path / "old.ckpt")
    return tmp_path / "old.ckpt"


def saved(ckpt: Any, path: Path) -> Any:
    write_checkpoint(ckpt, path)
    return torch.load(path, weights_only=False)


def test_class_is_renamed_wherever_it_is_named_and_loads_as_the_new_one(
    packages: Any, file: Path
) -> None:
    old, new = packages
    del sys.modules["old_package"].Config

    ckpt = rename_class("old_package.Config", "new_package.Settings")(read_checkpoint(file))

    loaded = saved(ckpt, file)
    assert type(loaded["config"]) is new.Settings
    assert (loaded["config"].lr, loaded["config"].kind) == (0.1, new.Settings)
    assert loaded["all"][0] is loaded["all"][1][1]["x"] is loaded["config"]
    assert type(loaded["all"][1][0]) is old.Other


def test_whole_package_is_renamed(packages: Any, file: Path) -> None:
    _, new = packages

    loaded = saved(rename_class("old_package.*", "new_package.*")(read_checkpoint(file)), file)

    assert type(loaded["config"]) is new.Config
    assert type(loaded["all"][1][0]) is new.Other


def test_renamed_class_is_renamed_back_to_the_same_bytes(file: Path, packages: Any) -> None:
    ckpt = read_checkpoint(file)
    write_checkpoint(read_checkpoint(file), file.with_name("same.ckpt"))
    operation = rename_class("old_package.Config", "new_package.Settings")
    (inverse,) = operation.inverse(ckpt)

    write_checkpoint(inverse(operation(ckpt)), file.with_name("back.ckpt"))

    assert file.with_name("back.ckpt").read_bytes() == file.with_name("same.ckpt").read_bytes()


def test_class_inside_of_another_keeps_the_number_of_its_names() -> None:
    outer_inner = types.SimpleNamespace(__module__="p.m", __qualname__="A.B")

    assert rename_class("p.m.A.B", "q.C.D").new_path(outer_inner) == ("q", "C.D")  # type: ignore[arg-type]
    assert rename_class("p.m:A.B", "q.r:D").new_path(outer_inner) == ("q.r", "D")  # type: ignore[arg-type]
    assert rename_class("p.m.B", "q.D").new_path(outer_inner) is None  # type: ignore[arg-type]


def test_the_checkpoint_passed_in_shares_nothing_that_was_renamed(file: Path) -> None:
    ckpt = read_checkpoint(file)
    twin = copy.deepcopy(ckpt)

    rename_class("old_package.Config", "new_package.Settings")(twin)

    assert recipe(ckpt["config"]).function.__module__ == "old_package"


def test_class_that_is_not_named_is_an_error_and_one_that_is_renamed_is_none(file: Path) -> None:
    ckpt = read_checkpoint(file)

    with pytest.raises(KeysNotFound, match=r"names no old_package\.Gone"):
        rename_class("old_package.Gone", "new_package.Gone")(ckpt)
    rename_class("old_package.Gone", "new_package.Gone", missing="skip")(ckpt)
    rename_class("elsewhere.Config", "old_package.Config")(ckpt)


def test_real_object_of_the_old_class_is_an_error_and_of_the_new_one_is_left_alone(
    packages: Any,
) -> None:
    old, new = packages
    operation = rename_class("old_package.Config", "new_package.Settings")
    config = new.Settings()

    with pytest.raises(OperationError, match=r"configs\.0 is a real object of old_package.Config"):
        operation({"configs": [old.Config()]})

    assert operation({"config": config})["config"] is config


@pytest.mark.parametrize("paths", [("a.*", "b.C"), ("C", "b.C"), ("a.b c", "a.d")], ids=str)
def test_what_is_no_path_of_a_class_is_refused_when_it_is_written(paths: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="path"):
        rename_class(*paths)

from __future__ import annotations

import argparse
import collections
import pathlib

import pytest
import torch

from migrate_ckpt import RefusedGlobals, migrate_file, plan_file, read_folder, write_checkpoint
from migrate_ckpt.foreign import made_by
from migrate_ckpt.formats.allowed_globals import read_allowed_globals


@pytest.fixture
def folder(write_folder):
    return write_folder({"0001_x.py": '"""X."""\ndef handle(ckpt):\n    return ckpt\n'})


PLAIN = {
    "w": torch.ones(2),
    "p": torch.nn.Parameter(torch.ones(2)),
    "u": torch.ones(2, dtype=torch.uint16),
    "o": collections.OrderedDict(a={1}, b=b"x", c=1j, d=bytearray(b"y")),
    "t": [torch.float8_e4m3fn, torch.Size([1]), torch.device("cpu")],
}


def test_plain_values_and_tensors_need_no_place_on_the_list(save, folder, tmp_path):
    migrate_file(save(PLAIN), tmp_path / "new.ckpt", folder=folder, allowed_globals=())

    assert (tmp_path / "new.ckpt").exists()


def test_what_is_not_on_the_list_is_refused_by_name(save, folder, tmp_path):
    path = save({"args": argparse.Namespace(), "path": pathlib.PurePosixPath("x"), "f": print})

    with pytest.raises(RefusedGlobals) as refusal:
        migrate_file(path, tmp_path / "new.ckpt", folder=folder, allowed_globals=["argparse.*"])

    assert refusal.value.globals == ("pathlib.PurePosixPath", "__builtin__.print")
    assert not (tmp_path / "new.ckpt").exists()


class Outer:
    class Inner:
        """A class that is reached through another one."""


@pytest.mark.parametrize("protocol", [2, 4])
def test_what_is_reached_through_another_name_must_be_listed_by_its_path(
    save, folder, tmp_path, protocol
):
    path = save({"x": Outer.Inner()}, pickle_protocol=protocol)
    listed = [f"{__name__}.Outer.Inner", f"{__name__}.Outer", "*.getattr"]

    with pytest.raises(RefusedGlobals, match=r"Outer\.Inner"):
        migrate_file(path, tmp_path / "new.ckpt", folder=folder, allowed_globals=["*"])
    migrate_file(path, tmp_path / "new.ckpt", folder=folder, allowed_globals=listed)


@pytest.mark.parametrize("name", ["int8evil", "float8_e4m3fn_evil", "boolean"])
def test_what_begins_like_a_dtype_is_none(save, folder, tmp_path, name):
    made = made_by(f"torch.{name}", is_new=False)
    write_checkpoint({"x": made}, tmp_path / "old.ckpt")

    with pytest.raises(RefusedGlobals, match=name):
        plan_file(tmp_path / "old.ckpt", read_folder(folder), allowed_globals=())


def test_a_plan_refuses_the_same(save, folder):
    with pytest.raises(RefusedGlobals):
        plan_file(save({"args": argparse.Namespace()}), read_folder(folder), allowed_globals=())


def test_without_a_list_everything_passes(save, folder):
    assert plan_file(save({"args": argparse.Namespace()}), read_folder(folder)).to_run


def test_a_list_has_a_pattern_a_line_and_may_be_commented():
    assert read_allowed_globals("# known\nargparse.Namespace\n\nnumpy.*  # scalars\n") == (
        "argparse.Namespace",
        "numpy.*",
    )

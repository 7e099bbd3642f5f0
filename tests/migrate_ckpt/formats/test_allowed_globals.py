from __future__ import annotations

import argparse
import collections
import pathlib

import pytest
import torch

from migrate_ckpt import RefusedGlobals, migrate_file, plan_file, read_folder
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

"""The same input gives the same bytes: in any process, under any hash seed and any file name."""

from __future__ import annotations

import argparse
import collections
import hashlib
import os
import pathlib
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.acceptance

PROCESSES = 20

MIGRATION = '''
"""Make what depends on hashes and identities: sets, shared text, new tensors, edited objects."""

import torch


def handle(ckpt):
    ckpt["state_dict"] = {"new." + key: value for key, value in ckpt["state_dict"].items()}
    ckpt["names"] = {key for key in ckpt["state_dict"]}
    ckpt["scale"] = torch.ones(3)
    ckpt["state_dict"]["new.0"].mul_(2)
    ckpt["args"].fresh = "".join(["te", "xt"])
    return ckpt
'''

PROGRAM = """
    import sys
    from migrate_ckpt import migrate_file
    migrate_file(sys.argv[1], sys.argv[2], folder=sys.argv[3])
"""


def test_twenty_processes_with_twenty_hash_seeds_write_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations" / "0001_x.py").write_text(MIGRATION.lstrip())
    value = {
        "state_dict": {str(i): torch.full((10,), i) for i in range(20)},
        "args": argparse.Namespace(
            tags={"a", "b", "c"}, path=pathlib.PurePosixPath("x"), text="text"
        ),
        "counts": collections.Counter("abc"),
        "frozen": frozenset({"x", "y", "z"}),
        "objects": {pathlib.PurePosixPath(str(i)) for i in range(9)},
        "nested": {frozenset({pathlib.PurePosixPath("y"), (i, "x")}) for i in range(9)},
    }
    torch.save(value, tmp_path / "old.ckpt")

    digests = {seed: digest_of_a_run(tmp_path, seed) for seed in range(1, PROCESSES + 1)}

    assert len(set(digests.values())) == 1, digests


def digest_of_a_run(folder: Path, seed: int) -> str:
    source, target = folder / f"source {seed}.pt", folder / f"target-{seed}.bin"
    source.write_bytes((folder / "old.ckpt").read_bytes())
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), source, target, folder / "migrations"],
        env={**os.environ, "PYTHONHASHSEED": str(seed)},
        check=True,
    )
    return hashlib.sha256(target.read_bytes()).hexdigest()

"""Tells whether a path means a checkpoint in several files, and which functions are for its kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from migrate_ckpt.inspection import Inspection
from migrate_ckpt.plan import Plan
from migrate_ckpt.report import Report
from migrate_ckpt.sharded.distributed_metadata import is_distributed
from migrate_ckpt.sharded.distributed_run import (
    inspect_distributed,
    migrate_distributed,
    plan_distributed,
)
from migrate_ckpt.sharded.index_file import SUFFIX, find_index
from migrate_ckpt.sharded.sharded_run import inspect_sharded, migrate_sharded, plan_sharded


@dataclass(frozen=True, slots=True)
class Sharded:
    """A checkpoint in several files.

    Attributes:
        path: What stands for it: its index, or its folder.
        plan: Says what a set would do.
        inspect: Says what is in it.
        migrate: Migrates it.
    """

    path: Path
    plan: Callable[..., Plan]
    inspect: Callable[[Path], Inspection]
    migrate: Callable[..., Report]


def sharded_at(path: Path) -> Sharded | None:
    """Return the sharded checkpoint that a path means: an index, or a folder with one, or a distributed one."""
    if path.is_dir() and is_distributed(path):
        return Sharded(path, plan_distributed, inspect_distributed, migrate_distributed)
    is_index = path.name.endswith(SUFFIX) and path.is_file()
    index = find_index(path) if path.is_dir() else path if is_index else None
    if index is None:
        return None
    return Sharded(index, plan_sharded, inspect_sharded, migrate_sharded)

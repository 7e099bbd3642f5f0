"""Tells whether a path or a tar means a checkpoint in several files, and which."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from migrate_ckpt.errors import UnwritableCheckpoint
from migrate_ckpt.sharded.distributed_metadata import METADATA_NAME, is_distributed
from migrate_ckpt.sharded.distributed_run import DistributedKind
from migrate_ckpt.sharded.files import Files, FolderFiles, TarFiles, is_tar
from migrate_ckpt.sharded.folder_run import ShardedFolder
from migrate_ckpt.sharded.index_file import SUFFIX, find_index
from migrate_ckpt.sharded.kind import Kind
from migrate_ckpt.sharded.sharded_run import ShardedKind

if TYPE_CHECKING:
    from migrate_ckpt.formats.source import FileSource


def sharded_folder(path: Path) -> ShardedFolder | None:
    """Return the sharded checkpoint that a path means: an index, or a folder with one, or a distributed one."""
    is_index = path.name.endswith(SUFFIX) and path.is_file()
    if not path.is_dir() and not is_index:
        return None
    folder = path.parent if is_index else path
    found = _kind_of(FolderFiles(folder), path.name if is_index else None)
    return None if found is None else ShardedFolder(folder, *found)


def refuse_sharded(path: str | os.PathLike[str], done: str) -> None:
    """Refuse what is for single files only, and would be done to shards one by one.

    Raises:
        UnwritableCheckpoint: The path is a sharded checkpoint's.
    """
    if sharded_folder(Path(path)) is not None:
        raise UnwritableCheckpoint(
            f"a sharded checkpoint cannot be {done}, only a single file: keep the old set, and run migrations on it"
        )


def sharded_tar(source: FileSource) -> tuple[TarFiles, Kind] | None:
    """Return the sharded checkpoint that a tar holds.

    Raises:
        UnreadableCheckpoint: The tar is damaged, or holds more than plain files in one folder.
    """
    if not is_tar(source):
        return None
    files = TarFiles(source)
    found = _kind_of(files, None)
    return None if found is None else (files, found[1])


def _kind_of(files: Files, index: str | None) -> tuple[str, Kind] | None:
    if index is None and is_distributed(files):
        return METADATA_NAME, DistributedKind(files)
    name = index or find_index(files)
    return None if name is None else (name, ShardedKind(files, name))

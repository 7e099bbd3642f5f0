"""Shards that a run in place has left behind, since it was killed after it had replaced the index."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from migrate_ckpt.errors import HistoryError, UnreadableCheckpoint
from migrate_ckpt.history import read_history
from migrate_ckpt.sharded.files import FolderFiles
from migrate_ckpt.sharded.index_file import read_index
from migrate_ckpt.sharded.names import earlier_names


def find_leftovers(folder: Path, index: str, needed: Collection[str]) -> set[str]:
    """Return the names of shards that those of an index have replaced, as far as that is certain.

    Each is called as one of the index was in an earlier state, is older than the index, and is not needed. What a
    user has saved since is newer; what another run writes at this moment is of a later state.
    """
    try:
        read = read_index(FolderFiles(folder), index)
        history = read_history(dict(read.metadata))
    except (UnreadableCheckpoint, HistoryError, OSError):
        # Whoever works on it will tell what is wrong.
        return set()
    earlier = {name for shard in read.shards for name in earlier_names(shard, history)}
    return {name for name in earlier - set(needed) if _is_older(folder / name, folder / index)}


def _is_older(path: Path, index: Path) -> bool:
    try:
        file, of_index = path.lstat(), index.lstat()
    except FileNotFoundError:
        return False
    # Whoever copies a file may keep the first of the two, whoever changes its owner changes the second.
    return file.st_mtime_ns <= of_index.st_mtime_ns and file.st_ctime_ns <= of_index.st_ctime_ns

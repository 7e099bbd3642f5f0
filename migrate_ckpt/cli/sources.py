"""Which files a command works on. A sharded checkpoint counts as one, by its index or folder."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from migrate_ckpt.cli.exit_codes import refuse_usage
from migrate_ckpt.formats import may_be_checkpoint
from migrate_ckpt.formats.source import FileSource
from migrate_ckpt.sharded.distributed_metadata import is_distributed
from migrate_ckpt.sharded.files import FolderFiles
from migrate_ckpt.sharded.index_file import is_index, shards_of


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to work on; `name` is its path below the folder or the fixed part of the pattern that it was found by."""

    path: Path
    name: Path


def find_sources(paths: Sequence[Path], *, left_out: Path | None = None) -> list[SourceFile]:
    """All files that are named: files themselves, folders with all below them, and patterns.

    What stands below `left_out`, where the results of an earlier run are, is not found again.
    """
    found: list[SourceFile] = []
    for path in paths:
        seen = {file.path for file in found}
        found += [file for file in _expand(path, left_out) if file.path not in seen]
    return found


def _expand(path: Path, left_out: Path | None) -> list[SourceFile]:
    if path.is_dir() and is_distributed(FolderFiles(path)):
        return [SourceFile(path, Path(path.name))]
    if path.is_dir():
        files = list(_below(path, left_out))
        return files or refuse_usage(f"there is no checkpoint in the folder {str(path)!r}")
    if not path.exists() and glob.has_magic(str(path)):
        files = list(_matches(path, left_out))
        return files or refuse_usage(f"no file matches {str(path)!r}")
    return [SourceFile(path, Path(path.name))]


def _below(folder: Path, left_out: Path | None) -> Iterator[SourceFile]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and not _is_same(Path(parent, name), left_out)
        )
        for name in [n for n in folders if is_distributed(FolderFiles(Path(parent, n)))]:
            folders.remove(name)
            yield SourceFile(Path(parent, name), Path(parent, name).relative_to(folder))
        files = FolderFiles(Path(parent))
        indexes = [name for name in sorted(names) if is_index(files, name)]
        shards = [shards_of(files, index) for index in indexes]
        # Beside an index that cannot be used nobody knows which files are shards, which are nothing by themselves.
        left_alone = (
            set(names) if None in shards else {name for each in shards for name in each or ()}
        )
        for name in sorted(names):
            path = Path(parent, name)
            is_one = name in indexes or (name not in left_alone and _is_candidate(path))
            if not name.startswith(".") and is_one:
                yield SourceFile(path, path.relative_to(folder))


def _matches(pattern: Path, left_out: Path | None) -> Iterator[SourceFile]:
    fixed = Path()
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        fixed /= part
    for match in sorted(glob.glob(str(pattern), recursive=True)):
        path = Path(match)
        if path.is_file() and not any(_is_same(parent, left_out) for parent in path.parents):
            yield SourceFile(path, path.relative_to(fixed))


def _is_candidate(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with FileSource(path) as source:
            return may_be_checkpoint(source)
    except OSError:
        # Not to be passed over: whoever works on it will tell what is wrong.
        return True


def _is_same(path: Path, other: Path | None) -> bool:
    return other is not None and other.exists() and os.path.samefile(path, other)

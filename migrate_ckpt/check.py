"""Checks a folder of migrations as a run would find it: it can be read, its order is sound, every file imports."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

from migrate_ckpt.errors import FolderError, InvalidMigrationFile
from migrate_ckpt.folder import DEFAULT_SET, MigrationSet, listed, read_folder, sub_folders
from migrate_ckpt.loader import load_migrations
from migrate_ckpt.migration_file import is_candidate, read_file


@dataclass(frozen=True, slots=True)
class FolderCheck:
    """What was found: the sets that are in order, and what is wrong with the others."""

    sets: tuple[MigrationSet, ...]
    problems: tuple[FolderError, ...]


def check_folder(path: str | PathLike[str]) -> FolderCheck:
    """Read each set of a folder and import each of its files by itself.

    Raises:
        FolderError: There is no such folder.
    """
    folder = Path(path)
    sets = {DEFAULT_SET: folder}
    sets |= {sub.name: sub for sub in sub_folders(folder, with_migrations=True)}
    good: list[MigrationSet] = []
    problems: list[FolderError] = []
    for name, set_folder in sets.items():
        found = list(_unreadable_files(set_folder))
        if not found:
            try:
                migration_set = read_folder(set_folder, set_name=name)
            except FolderError as error:
                found = [error]
            else:
                found = list(_unloadable_files(migration_set))
                good += [] if found else [migration_set]
        problems += found
    return FolderCheck(tuple(good), tuple(problems))


def _unreadable_files(folder: Path) -> Iterator[FolderError]:
    for path in listed(folder):
        if is_candidate(path):
            try:
                read_file(path)
            except InvalidMigrationFile as error:
                yield error


def _unloadable_files(migration_set: MigrationSet) -> Iterator[FolderError]:
    for file in migration_set.files:
        try:
            load_migrations(replace(migration_set, files=(file,)))
        except InvalidMigrationFile as error:
            yield error

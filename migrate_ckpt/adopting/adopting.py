"""Tells which shape of migrations something is, and takes it over into a folder of ours."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from migrate_ckpt.adopting.adopted import Adopted, functions_of
from migrate_ckpt.adopting.original_folder import adopt_original
from migrate_ckpt.adopting.scripts import adopt_scripts
from migrate_ckpt.adopting.version_index import adopt_index, find_index
from migrate_ckpt.errors import FolderError, InvalidMigrationFile
from migrate_ckpt.folder import listed
from migrate_ckpt.migration_file import is_candidate, parse

LIGHTNING_VERSION = "pytorch-lightning_version"


def adopt(
    source: str | PathLike[str],
    folder: str | PathLike[str],
    *,
    version_key: str = LIGHTNING_VERSION,
) -> Adopted:
    """Take over migrations of another shape into a folder that has none yet. Nothing is imported or run.

    Known are a folder of the original library's (`handle(ckpt)` in each file), a file with an index by version, such as
    Lightning's (a function or name with a dict of versions and lists of functions), and a folder of scripts with
    `migrate(ckpt)` and `rollback(ckpt)`, such as anemoi's.

    Args:
        source: The folder, or the file with the index.
        folder: Where the migrations go.
        version_key: With an index: where in a checkpoint the version stands.

    Raises:
        FolderError: The source is none of these, cannot be read, or the folder has migrations already.
    """
    place, target = Path(source), Path(folder)
    if target.is_dir() and any(map(is_candidate, listed(target))):
        raise FolderError(f"{target} has migrations already. Name a new folder.", path=target)
    if place.is_file():
        tree = parse(place)
        index = find_index(tree)
        if index is None:
            raise FolderError(
                f"{place} has no index: a function that returns, or a name that is, a dict of versions and lists "
                "of the file's own functions.",
                path=place,
            )
        return adopt_index(place, tree, index, target, version_key)
    files = [path for path in listed(place) if is_candidate(path)]
    functions = {path: _functions(path) for path in files}
    if any("handle" in names for names in functions.values()):
        return adopt_original(place, files, target)
    if any("migrate" in names for names in functions.values()):
        return adopt_scripts(files, target)
    raise FolderError(
        f"No file of {place} defines `handle(ckpt)`, as for the original library, or `migrate(ckpt)`, as for anemoi.",
        path=place,
    )


def _functions(path: Path) -> set[str]:
    try:
        return set(functions_of(parse(path)))
    except InvalidMigrationFile:
        return set()

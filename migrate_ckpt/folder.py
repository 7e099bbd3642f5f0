"""A folder of migrations, read without running any of it.

A migration is a Python file that stands directly in the folder and whose name starts with neither
`_` nor `.`; its name is the file's stem, and it defines `handle` or lists its `operations`.
Everything else belongs to the migrations: modules that start with `_`, packages and data files, in
the folder and below it, count in the set's digest. Left out are names that start with `.`,
`__pycache__`, `.pyc` files and Markdown, which is for people.

A sub-folder that holds migrations is a further set. A sub-folder of other modules is a
package that the migrations may import.

JSON files in a sub-folder `fixtures` are what migrations are tested with, and no part of the set.

A file `manifest.json` says what the state dict of a checkpoint is like that has had all migrations.

The order is the alphabetical one of the names. Where their numbers say otherwise, as `10_x` and
`2_y` do, the folder is refused, unless its `__init__.py` has the line `order = "natural"`, which
is read and not run.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from migrate_ckpt.digest import digest_of_file, digest_of_parts, digest_of_tree
from migrate_ckpt.errors import FolderError, InvalidMigrationFile, OrderMismatch, UnknownSet
from migrate_ckpt.manifest import MANIFEST_NAME, Manifest, read_manifest
from migrate_ckpt.migration_file import MigrationFile as MigrationFile
from migrate_ckpt.migration_file import is_candidate, may_be_migration, parse, read_file

DEFAULT_SET = "default"
FIXTURES_NAME = "fixtures"
"""What the sub-folder of a set is called that has the fixtures of its migrations."""

_NOT_PART_OF_IT = (".md", ".pyc")
_SET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NUMBER = re.compile(r"([0-9]+)")


@dataclass(frozen=True, slots=True)
class MigrationSet:
    """The migrations of one folder in their order; the digest also covers what stands beside.

    With a manifest, a checkpoint that has had all of them must be as it says.
    """

    name: str
    path: Path
    files: tuple[MigrationFile, ...]
    digest: str
    manifest: Manifest | None = None


def read_folder(path: str | PathLike[str], *, set_name: str = DEFAULT_SET) -> MigrationSet:
    """Read one folder as a set, which may have no migrations.

    Raises:
        FolderError: The folder cannot be read.
        InvalidMigrationFile: A file does not parse, or defines neither `handle` nor `operations`.
        InvalidManifest: Its `manifest.json` is none.
        OrderMismatch: The names' alphabetical order is not their numeric one.
    """
    folder = Path(path)
    stems = in_order(folder, sorted(p.stem for p in listed(folder) if is_candidate(p)))
    files = tuple(read_file(folder / f"{stem}.py") for stem in stems)
    _check_replaced(files)
    declared = folder / MANIFEST_NAME
    manifest = read_manifest(declared) if declared.is_file() else None
    return MigrationSet(set_name, folder, files, _set_digest(folder, files), manifest)


def read_sets(path: str | PathLike[str]) -> dict[str, MigrationSet]:
    """Read the folder as the set `default`, and each sub-folder with migrations as another."""
    folder = Path(path)
    sets = {DEFAULT_SET: read_folder(folder)}
    for sub_folder in sub_folders(folder, with_migrations=True):
        name = sub_folder.name
        if name == DEFAULT_SET or not _SET_NAME.fullmatch(name):
            raise FolderError(
                f"The folder {name!r} holds migrations and cannot be the name of a set: that is 1 "
                f"to 64 letters, digits, dots, dashes and underscores, and not {DEFAULT_SET!r}.",
                path=sub_folder,
            )
        sets[name] = read_folder(sub_folder, set_name=name)
    return sets


def read_set(path: str | PathLike[str], name: str = DEFAULT_SET) -> MigrationSet:
    """Read one of the folder's sets, whatever is wrong with another one.

    Raises:
        UnknownSet: The folder has no such set.
        And what `read_folder` raises.
    """
    folder = Path(path)
    if name == DEFAULT_SET:
        return read_folder(folder)
    sub_folder = folder / name
    if _SET_NAME.fullmatch(name) and sub_folder in sub_folders(folder, with_migrations=True):
        return read_folder(sub_folder, set_name=name)
    names = tuple(read_sets(folder))
    raise UnknownSet(
        f"There is no set {name!r}; there is: {', '.join(names)}.",
        path=folder,
        name=name,
        names=names,
    )


def as_set(folder: str | PathLike[str] | MigrationSet, name: str = DEFAULT_SET) -> MigrationSet:
    """Return a set that was read already as it is, and read one of a folder's otherwise."""
    return folder if isinstance(folder, MigrationSet) else read_set(folder, name)


def sub_folders(folder: Path, *, with_migrations: bool) -> list[Path]:
    """Return the sub-folders that hold migrations, or those that do not, sorted."""
    return [
        path
        for path in listed(folder)
        if path.is_dir()
        and not path.name.startswith(".")
        and path.name != "__pycache__"
        and _holds_migrations(path) is with_migrations
    ]


def listed(folder: Path) -> list[Path]:
    """Return all that stands directly in a folder, sorted."""
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise _unreadable(folder, error) from error


def _unreadable(path: Path, error: OSError) -> FolderError:
    return FolderError(
        f"The migrations cannot be read: {error.strerror}: {str(path)!r}.", path=path
    )


def _holds_migrations(folder: Path) -> bool:
    return not folder.name.startswith("_") and any(
        may_be_migration(path) for path in listed(folder) if is_candidate(path)
    )


def in_order(folder: Path, stems: list[str]) -> list[str]:
    by_number = sorted(stems, key=natural_key)
    if stems == by_number or declares_natural_order(folder):
        return by_number
    moved = [pair for pair in zip(stems, by_number, strict=True) if pair[0] != pair[1]]
    early, late = moved[0]
    raise OrderMismatch(
        f"Alphabetical and numeric order disagree: {early!r} comes before {late!r}, although its "
        "number is the higher one. Give the numbers the same width (0002_y, 0010_x); or, if the "
        'names are in histories already, write `order = "natural"` into the folder\'s __init__.py '
        "to order by number.",
        path=folder,
        names=[stem for stem, _ in moved],
    )


def natural_key(stem: str) -> tuple[list[str | int], str]:
    parts = _NUMBER.split(stem)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], stem


def declares_natural_order(folder: Path) -> bool:
    init = folder / "__init__.py"
    if not init.is_file():
        return False
    return any(
        isinstance(node, ast.Assign)
        and any(isinstance(t, ast.Name) and t.id == "order" for t in node.targets)
        and isinstance(node.value, ast.Constant)
        and node.value.value == "natural"
        for node in parse(init).body
    )


def _check_replaced(files: Sequence[MigrationFile]) -> None:
    """Refuse a squashed migration that does not come just after those that it replaces, in their order.

    Raises:
        InvalidMigrationFile: One does not, or two replace the same.
    """
    names = [file.name for file in files]
    replaced: set[str] = set()
    for position, file in enumerate(files):
        here = [name for name in file.replaces if name in names]
        before = names[max(position - len(here), 0) : position]
        if here != before or replaced & set(file.replaces):
            raise InvalidMigrationFile(
                f"{file.path.name} must come just after the migrations that it replaces, in their order, and they can "
                f"be replaced once only: {', '.join(file.replaces)}.",
                path=file.path,
                name=file.name,
            )
        replaced |= set(file.replaces)


def _set_digest(folder: Path, files: Sequence[MigrationFile]) -> str:
    own = {file.path for file in files}
    sub_sets = set(sub_folders(folder, with_migrations=True))
    parts = [part for file in files for part in (file.name, file.digest)]
    for path in _files_below(folder, sub_sets):
        is_fixture = path.parent == folder / FIXTURES_NAME and path.suffix == ".json"
        if path not in own and not is_fixture:
            parts += [path.relative_to(folder).as_posix(), _digest_of_file(path)]
    return digest_of_parts(parts)


def _files_below(folder: Path, left_out: Collection[Path]) -> Iterator[Path]:
    for path in listed(folder):
        if path.name.startswith(".") or path.name == "__pycache__" or path in left_out:
            continue
        if path.is_dir():
            yield from _files_below(path, left_out)
        elif path.is_file() and path.suffix not in _NOT_PART_OF_IT:
            yield path


def _digest_of_file(path: Path) -> str:
    if path.suffix == ".py":
        return digest_of_tree(parse(path))
    try:
        with path.open("rb") as file:
            return digest_of_file(file)
    except OSError as error:
        raise _unreadable(path, error) from error

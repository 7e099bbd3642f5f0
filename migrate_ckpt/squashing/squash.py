"""Writes one migration that stands for several which come one after the other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from migrate_ckpt.errors import FolderError, UnknownMigration
from migrate_ckpt.folder import in_order, read_folder
from migrate_ckpt.linting.code import LOSSY_OPERATIONS
from migrate_ckpt.loader import load_migrations
from migrate_ckpt.migration import Migration
from migrate_ckpt.migration_file import MigrationFile, parse
from migrate_ckpt.operations.operation import Operation
from migrate_ckpt.python_text import import_lines, in_docstring, lay_out
from migrate_ckpt.squashing.merging import merge, templates_left_out

SUFFIX = "_squashed"


@dataclass(frozen=True, slots=True)
class Squashed:
    """What was written.

    Attributes:
        path: The file of the new migration, which comes just after those that it replaces.
        replaces: Their names.
        count_before: How many operations they have.
        count: How many it has.
        notes: What a reader should know, a sentence each.
    """

    path: Path
    replaces: tuple[str, ...]
    count_before: int
    count: int
    notes: tuple[str, ...] = ()


def squash(
    path: str | PathLike[str], first: str, last: str, *, name: str | None = None
) -> Squashed:
    """Write one migration for those from `first` to `last`, which stay where they are.

    Whoever has had none of them gets the new one in their place; whoever has had some gets the rest one by one. Once no
    checkpoint is in between any more, they can be deleted; the new one must keep its `replaces`.

    Args:
        path: The folder of migrations.
        first: The name of the first that is replaced.
        last: The name of the last.
        name: The name of the new one, which must come just after `last`; None is that of `last` and `_squashed`.

    Raises:
        UnknownMigration: There is no migration of one of the names.
        FolderError: They are not in this order; or one has a `handle`, says how the optimizer follows, is squashed
            itself, or, not being the first, requires something; or the new name is taken, or not the next.
    """
    folder = Path(path)
    migration_set = read_folder(folder)
    names = [file.name for file in migration_set.files]
    for wanted in (first, last):
        if wanted not in names:
            raise UnknownMigration(
                f"There is no migration {wanted!r} in {folder}.", name=wanted, names=tuple(names)
            )
    start, stop = names.index(first), names.index(last) + 1
    if stop - start < 2:
        raise FolderError(
            f"{first} to {last} are no two migrations that come one after the other.", path=folder
        )
    files = migration_set.files[start:stop]
    migrations = load_migrations(migration_set)[start:stop]
    for file, migration in zip(files, migrations, strict=True):
        _refuse(file, migration, is_first=file.name == first)
    stem = _name_after(folder, names, stop, name or f"{last}{SUFFIX}")
    operations = [o for migration in migrations for o in migration.operations or ()]
    merged = merge(operations)
    replaced = tuple(file.name for file in files)
    target = folder / f"{stem}.py"
    text = "\n".join(_lines(files, replaced, merged)) + "\n"
    # One file that is no Python makes the whole folder unreadable.
    ast.parse(text, filename=target.name)
    with target.open("x", encoding="utf-8") as opened:
        opened.write(text)
    notes = tuple(_notes(files, templates_left_out(operations, merged)))
    return Squashed(target, replaced, len(operations), len(merged), notes)


def _refuse(file: MigrationFile, migration: Migration, *, is_first: bool) -> None:
    why = None
    if not file.is_declared:
        why = "has a `handle`, and only lists of operations can be written as one"
    elif file.has_optimizer_rules:
        why = "says in `optimizer` how it is followed, which is for its own operations"
    elif file.replaces:
        why = "is squashed itself"
    elif file.has_requirements and not is_first:
        why = "`requires` something of the checkpoint as it is in between"
    elif any(required.otherwise == "not_applicable" for required in migration.requires):
        why = "alone is passed over where what it `requires` is not there"
    elif file.has_requirements and _requires_text(file) is None:
        why = "`requires` something that is not written out in one call of `requires_key` or `requires_value`"
    elif any(not _can_be_written(o) for o in migration.operations or ()):
        why = "has an operation that cannot be written out"
    if why is not None:
        raise FolderError(
            f"{file.name} {why}. Squash those before it and those after it.", path=file.path
        )


def _can_be_written(operation: Operation) -> bool:
    """Tell whether an operation is one of ours, so that its call makes it again."""
    import migrate_ckpt.operations as known

    return operation.verb in known.__all__ and type(operation).__module__.startswith(known.__name__)


def _name_after(folder: Path, names: Sequence[str], stop: int, stem: str) -> str:
    """Return a name that comes just after the last of those that are replaced.

    Raises:
        FolderError: It does not.
    """
    if stem in names or not re.fullmatch(r"\w{1,200}", stem):
        raise FolderError(f"{stem!r} is taken, or cannot be the name of a migration.", path=folder)
    ordered = in_order(folder, sorted([*names, stem]))
    if ordered.index(stem) != stop:
        raise FolderError(
            f"{stem!r} would not come just after {names[stop - 1]!r}. Choose another name, which begins as that does.",
            path=folder,
        )
    return stem


def _lines(
    files: Sequence[MigrationFile], replaced: Sequence[str], operations: Sequence[Operation]
) -> Iterator[str]:
    yield f'"""Do in one what {len(replaced)} migrations do.'
    yield ""
    yield from (f"* {in_docstring(file.title or file.name)}" for file in files)
    if any(operation.verb in LOSSY_OPERATIONS for operation in operations):
        yield ""
        yield "Lossy: as those were."
    yield '"""'
    yield ""
    requires = _requires_text(files[0]) if files[0].has_requirements else None
    calls = [operation.written() for operation in operations]
    if any("re.compile(" in call for call in calls):
        yield "import re"
        yield ""
    verbs = {operation.verb for operation in operations}
    verbs |= {name for name in ("requires_key", "requires_value") if name in (requires or "")}
    if verbs:
        yield from import_lines(sorted(verbs))
        yield ""
    names = ", ".join(f'"{name}"' for name in replaced)
    yield f"replaces = {lay_out(f'[{names}]')}"
    yield ""
    if requires:
        yield f"requires = {requires}"
        yield ""
    if not operations:
        yield "# They undo each other, and there is nothing left to do."
        yield from ("def handle(ckpt):", "    return ckpt")
        return
    yield "operations = ["
    yield from (f"    {lay_out(call, 4)}," for call in calls)
    yield "]"


def _requires_text(file: MigrationFile) -> str | None:
    """Return what a file requires as it is written there, if it is one call, or a list of calls, with constants."""
    text = file.path.read_text(encoding="utf-8")
    for node in parse(file.path).body:
        is_it = isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "requires" for target in node.targets
        )
        if is_it and isinstance(node, ast.Assign):
            names = {n.id for n in ast.walk(node.value) if isinstance(n, ast.Name)}
            if names <= {"requires_key", "requires_value"}:
                return ast.get_source_segment(text, node.value)
    return None


def _notes(files: Sequence[MigrationFile], left_out: Sequence[str]) -> Iterator[str]:
    own = [file.name for file in files if file.has_revert]
    if own:
        yield f"The `revert` of {', '.join(own)} is not in it."
    if left_out:
        yield (
            f"It takes it that no checkpoint has a key that is {' or '.join(left_out)} before: such a key would be "
            "left as it is, and those that are replaced take it along."
        )

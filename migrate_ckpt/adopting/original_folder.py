"""Takes over a folder of the original library's: the files as they are, under the names that are in histories."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from migrate_ckpt.adopting.adopted import (
    Adopted,
    functions_of,
    other_packages,
    read_source,
    write_all,
)
from migrate_ckpt.errors import InvalidMigrationFile
from migrate_ckpt.folder import natural_key
from migrate_ckpt.migration_file import may_be_migration, parse

_NATURAL = '''"""The numbers of these migrations have no zeros in front, and their names are in histories already."""

order = "natural"
'''


def adopt_original(source: Path, files: Sequence[Path], target: Path) -> Adopted:
    """Copy the migrations, and say what about them is different here."""
    texts: list[tuple[str, str]] = []
    left: list[tuple[str, str]] = []
    notes: list[str] = []
    for path in files:
        try:
            text, reason = read_source(path), _reason_to_leave(path)
        except InvalidMigrationFile as error:
            text, reason = "", str(error).removeprefix(f"{path.name} ")
        if reason is None:
            texts.append((path.name, text))
            notes += _notes(path)
        else:
            left.append((path.name, reason))
    stems = [Path(name).stem for name, _ in texts]
    if sorted(stems) != sorted(stems, key=natural_key):
        texts.append(("__init__.py", _NATURAL))
        notes.append(
            "The original ran these in alphabetical order, 10 before 2; here they run by their numbers, and a "
            "checkpoint that has had 9 and not 10 gets 10."
        )
    left += [
        (path.name, "is no migration; copy it under a name that begins with _ if one needs it")
        for path in sorted(source.iterdir())
        if path not in files and path.suffix == ".py" and path.name != "__init__.py"
    ]
    return Adopted("the original library's", write_all(target, texts), tuple(left), tuple(notes))


def _reason_to_leave(path: Path) -> str | None:
    tree = parse(path)
    if not may_be_migration(path):
        return "defines no `handle`; as a helper it needs a name that begins with _"
    handle = functions_of(tree).get("handle")
    required = 1 if handle is None else len(handle.args.args) - len(handle.args.defaults)
    return None if required == 1 else "has a `handle` that takes more than the checkpoint"


def _notes(path: Path) -> list[str]:
    packages = other_packages(parse(path))
    return (
        [f"{path.name} imports {', '.join(packages)}, which must be installed where it runs."]
        if packages
        else []
    )

"""Starts a new migration file, from the folder's own template or one of ours."""

from __future__ import annotations

import re
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Literal, TypeAlias

from migrate_ckpt.errors import FolderError
from migrate_ckpt.folder import FIXTURES_NAME, in_order, read_folder

Form: TypeAlias = Literal["operations", "handle"]
"""What a migration consists of: a declared list of operations, or a function."""

TEMPLATE_NAME = "_template.py"
_TITLE = "{title}"

# What the templates make of a checkpoint, so that a fixture is there to be edited with them.
_FIXTURES: dict[Form, str] = {
    "operations": """\
{
  "fixture": 1,
  "before": {
    "state_dict": {"old.name": {"$tensor": "float32", "shape": [2, 2], "data": [1.0, 2.0, 3.0, 4.0]}}
  },
  "after": {
    "state_dict": {"new.name": {"$tensor": "float32", "shape": [2, 2], "data": [1.0, 2.0, 3.0, 4.0]}}
  }
}
""",
    "handle": """\
{
  "fixture": 1,
  "before": {
    "state_dict": {"a.name": {"$tensor": "float32", "shape": [2, 2], "data": [1.0, 2.0, 3.0, 4.0]}}
  },
  "after": {
    "state_dict": {"a.name": {"$tensor": "float32", "shape": [2, 2], "data": [1.0, 2.0, 3.0, 4.0]}}
  }
}
""",
}

_TEMPLATES: dict[Form, str] = {
    "operations": '''\
"""{title}.

Why: what changed in the code, and where to read about it.
"""

from migrate_ckpt.operations import rename

operations = [
    rename("old.name", "new.name"),
]
''',
    "handle": '''\
"""{title}.

Why: what changed in the code, and where to read about it.
"""

from migrate_ckpt import CkptType


def handle(ckpt: CkptType) -> CkptType:
    return ckpt
''',
}


def new_migration(
    path: str | PathLike[str], name: str, *, form: Form | None = None, text: str | None = None
) -> Path:
    """Write the file of a new migration that comes last in the folder's order; return its path.

    It is a copy of the folder's `_template.py`, with the title in the place of `{title}`. Where
    there is none, or a form is asked for, it is one of ours: by default a list of operations; then a fixture to
    edit with it is written, too. A text that is given is taken in place of both.

    Raises:
        FolderError: The name holds other characters than letters, digits and underscores, or no
            number in front of it makes it the last.
    """
    folder = Path(path)
    if not re.fullmatch(r"\w{1,200}", name):
        raise FolderError(
            f"{name!r} cannot be the name of a migration: use letters, digits and underscores.",
            path=folder,
        )
    folder.mkdir(parents=True, exist_ok=True)
    stems = [file.name for file in read_folder(folder).files]
    stem = f"{_next_number(stems)}_{name}"
    if in_order(folder, sorted([*stems, stem]))[-1] != stem:
        raise FolderError(
            f"{stem!r} would not come after {stems[-1]!r}. Write the file by hand, under a name "
            "that does.",
            path=folder,
        )
    target = folder / f"{stem}.py"
    with target.open("x", encoding="utf-8") as file:
        file.write(text or _template(folder, form).replace(_TITLE, title_of(name)))
    if text is None and not (form is None and (folder / TEMPLATE_NAME).is_file()):
        fixtures = folder / FIXTURES_NAME
        fixtures.mkdir(exist_ok=True)
        (fixtures / f"{stem}.json").write_text(_FIXTURES[form or "operations"], encoding="utf-8")
    return target


def title_of(name: str) -> str:
    """Return the title of a migration that is called so: `rename_head` is "Rename head"."""
    return name.replace("_", " ").strip().capitalize()


def _template(folder: Path, form: Form | None) -> str:
    own = folder / TEMPLATE_NAME
    if form is None and own.is_file():
        return own.read_text(encoding="utf-8")
    return _TEMPLATES[form or "operations"]


def _next_number(stems: Sequence[str]) -> str:
    """Count on from the highest number in front of a name, with as many digits."""
    found = [number[0] for number in map(re.compile("[0-9]+").match, stems) if number]
    last = max(found, key=int, default="0000")
    return str(int(last) + 1).zfill(len(last))

"""Takes over an index by version: functions that are due to checkpoints of before a version.

The file with the functions becomes a helper of the new folder, as it is; each function gets a migration that calls it
where the version in the checkpoint says so. The last one writes the newest version down, so that whoever reads the
checkpoint next does not do it all again.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from migrate_ckpt.adopting.adopted import (
    Adopted,
    functions_of,
    other_packages,
    read_source,
    write_all,
)
from migrate_ckpt.adopting.versions import comparable
from migrate_ckpt.python_text import in_docstring, lay_out

HELPER = "_upgrades"
VERSIONS = "_versions"

_VERSIONS_TEXT = '''"""Tells whether a checkpoint is of before a version."""

import re

KEY = {key!r}


def is_before(ckpt, version):
    return comparable(str(ckpt[KEY])) < comparable(version)


{comparable}'''

_MIGRATION = '''"""{title}

Due to checkpoints of before {told}.
"""

from migrate_ckpt import CkptType

from .{helper} import {function} as upgrade
from .{versions} import is_before


def handle(ckpt: CkptType) -> CkptType:
    return upgrade(ckpt) if is_before(ckpt, {version}) else ckpt
'''

_LAST = '''"""Write down that the checkpoint is of version {told}.

Whoever upgrades by the version would otherwise do again what was done here.
"""

from migrate_ckpt import CkptType

from .{versions} import KEY, is_before


def handle(ckpt: CkptType) -> CkptType:
    if is_before(ckpt, {version}):
        ckpt[KEY] = {version}
    return ckpt
'''


def find_index(tree: ast.Module) -> dict[str, list[str]] | None:
    """Return the names of functions by version, of the first dict in a file that is such an index."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Return | ast.Assign | ast.AnnAssign) and isinstance(
            node.value, ast.Dict
        ):
            index = _as_index(node.value)
            functions = set(functions_of(tree))
            if index and all(set(names) <= functions for names in index.values()):
                return index
    return None


def _as_index(node: ast.Dict) -> dict[str, list[str]] | None:
    index: dict[str, list[str]] = {}
    for key, value in zip(node.keys, node.values, strict=True):
        is_version = isinstance(key, ast.Constant) and isinstance(key.value, str)
        if not is_version or not isinstance(value, ast.List | ast.Tuple):
            return None
        if not all(isinstance(item, ast.Name) for item in value.elts):
            return None
        assert isinstance(key, ast.Constant)
        index[str(key.value)] = [item.id for item in value.elts if isinstance(item, ast.Name)]
    return index


def adopt_index(
    source: Path, tree: ast.Module, index: Mapping[str, Sequence[str]], target: Path, key: str
) -> Adopted:
    """Write a migration for each function of an index."""
    texts = [
        (f"{HELPER}.py", read_source(source)),
        (
            f"{VERSIONS}.py",
            _VERSIONS_TEXT.format(key=key, comparable=inspect.getsource(comparable)),
        ),
        *_migrations(functions_of(tree), index),
    ]
    notes = [f"The version of a checkpoint is looked for under {key!r}."]
    packages = other_packages(tree)
    if packages:
        notes.append(
            f"{HELPER}.py imports {', '.join(packages)}: install that where the migrations run, or take out what "
            "needs it."
        )
    return Adopted("an index by version", write_all(target, texts), notes=tuple(notes))


def _migrations(
    functions: Mapping[str, ast.FunctionDef], index: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, str]]:
    number = 0
    for version, names in index.items():
        for name in names:
            number += 1
            docstring = ast.get_docstring(functions[name]) or name.strip("_").replace("_", " ")
            text = _MIGRATION.format(
                title=in_docstring(docstring.splitlines()[0]),
                told=in_docstring(version),
                version=lay_out(repr(version)),
                function=name,
                helper=HELPER,
                versions=VERSIONS,
            )
            stem = name.strip("_").removeprefix("migrate_")
            yield f"{number:04}_{stem}.py", text
    # An index need not be in the order of its versions.
    newest = max(index, key=comparable)
    last = _LAST.format(told=in_docstring(newest), version=lay_out(repr(newest)), versions=VERSIONS)
    yield f"{number + 1:04}_set_the_version.py", last

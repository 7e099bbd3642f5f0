"""Takes over scripts with `migrate(ckpt)`, `rollback(ckpt)` and `migrate_setup(context)`, as anemoi has them.

`migrate` becomes `handle`, `rollback` becomes `revert`, and classes and modules that the setup moves are renamed in the
checkpoint, where anemoi's loader is told to find them elsewhere. What it deletes needs nothing here: a class that is
not there any more is kept without being imported. The history that anemoi keeps in a checkpoint is read once.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from migrate_ckpt.adopting.adopted import (
    Adopted,
    functions_of,
    other_packages,
    read_source,
    write_all,
)
from migrate_ckpt.errors import InvalidMigrationFile
from migrate_ckpt.migration_file import parse
from migrate_ckpt.python_text import lay_out

_OWN_NAMES = {"CkptType", "MigrationContext", "MigrationMetadata"}
_MOVES = {"move_attribute": "{}", "move_module": "{}.*"}
_DELETIONS = {"delete_attribute", "delete_module"}

_HISTORY = '''"""Take over the history of anemoi.

It is a list of dicts under `migrations`; those of its names that are here count as applied from now on.
"""

from migrate_ckpt import CkptType, ckpt_migration_key

NAMES = {names}


def handle(ckpt: CkptType) -> CkptType:
    had = [each["name"] for each in ckpt.get("migrations") or ()]
    known = [name for name in NAMES if name in had]
    if known:
        ckpt[ckpt_migration_key] = known
    return ckpt
'''

_HANDLE = """

def handle(ckpt: CkptType) -> CkptType:
    for operation in MOVED:
        ckpt = operation(ckpt)
    return _migrate(ckpt)


def revert(ckpt: CkptType) -> CkptType:
    ckpt = _rollback(ckpt)
    for operation in reversed(MOVED):
        (back,) = operation.declared_inverse()
        ckpt = back(ckpt)
    return ckpt
"""


class _Unusable(Exception):
    """Why a script cannot be taken over."""


class _Edit(NamedTuple):
    """Lines of a file, counted from zero, and what stands in their place."""

    start: int
    stop: int
    text: str


def adopt_scripts(files: Sequence[Path], target: Path) -> Adopted:
    """Write a migration for each script whose shape allows it, and one that reads the history."""
    texts: list[tuple[str, str]] = []
    left: list[tuple[str, str]] = []
    for path in files:
        try:
            texts.append((path.name, _converted(path)))
        except _Unusable as error:
            left.append((path.name, str(error)))
    names = [Path(name).stem for name, _ in texts]
    listed = lay_out(f"[{', '.join(map(repr, names))}]")
    history = ("0000_take_over_the_history.py", _HISTORY.format(names=listed))
    notes = ["Those that come after one that was left may need what it did."] if left else []
    return Adopted(
        "scripts with migrate(ckpt)",
        write_all(target, [history, *texts]),
        tuple(left),
        tuple(notes),
    )


def _converted(path: Path) -> str:
    try:
        tree, source = parse(path), read_source(path)
    except InvalidMigrationFile as error:
        raise _Unusable(str(error)) from error
    functions = functions_of(tree)
    for name in ("migrate", "rollback"):
        _check_takes_checkpoint(functions.get(name))
    moved = _moves(functions["migrate_setup"]) if "migrate_setup" in functions else []
    lines = source.splitlines()
    edits = [_without(node) for node in tree.body if _is_of_anemoi(node)]
    renamed = (
        {"migrate": "_migrate", "rollback": "_rollback"}
        if moved
        else {"migrate": "handle", "rollback": "revert"}
    )
    edits += [
        _renamed(lines, functions[old], old, new)
        for old, new in renamed.items()
        if old in functions
    ]
    for edit in sorted(edits, reverse=True):
        lines[edit.start : edit.stop] = [edit.text] if edit.text else []
    packages = other_packages(ast.parse("\n".join(lines)))
    if packages:
        raise _Unusable(f"needs {', '.join(packages)}")
    needed = [
        name
        for old, name in renamed.items()
        if old not in functions and (moved or old == "migrate")
    ]
    body = "\n".join(lines).strip("\n") + "".join(map(_passing, needed))
    text = [*_head(path, moved), "", body + (_HANDLE if moved else "")]
    return "\n".join(text).rstrip() + "\n"


def _head(path: Path, moved: Sequence[str]) -> list[str]:
    title = path.stem.lstrip("0123456789_").replace("_", " ").capitalize() or path.stem
    head = [f'"""{title}."""', "", "from migrate_ckpt import CkptType"]
    if moved:
        calls = [f"    {lay_out(call, 4)}," for call in moved]
        head += ["from migrate_ckpt.operations import rename_class", "", "MOVED = [", *calls, "]"]
    return head


def _passing(name: str) -> str:
    return f"\n\n\ndef {name}(ckpt: CkptType) -> CkptType:\n    return ckpt"


def _check_takes_checkpoint(function: ast.FunctionDef | None) -> None:
    """Refuse a function that asks for more than the checkpoint, with a default or without."""
    if function is not None and len(function.args.args) + len(function.args.kwonlyargs) != 1:
        raise _Unusable(f"its `{function.name}` takes more than the checkpoint, such as the model")


def _moves(setup: ast.FunctionDef) -> list[str]:
    """Return the calls that rename what a setup moves."""
    calls = []
    for node in setup.body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        match node:
            case ast.Expr(ast.Call(ast.Attribute(attr=verb), args, [])):
                texts = [a.value for a in args if isinstance(a, ast.Constant)]
                if verb in _MOVES and len(texts) == len(args) == 2:
                    old, new = (_MOVES[verb].format(text) for text in texts)
                    calls.append(f'rename_class({old!r}, {new!r}, missing="skip")')
                    continue
                if verb in _DELETIONS:
                    continue
        raise _Unusable("its `migrate_setup` does more than to move and delete by name")
    return calls


def _is_of_anemoi(node: ast.stmt) -> bool:
    """Tell whether a statement is for anemoi alone: its types, its metadata, its setup."""
    if isinstance(node, ast.ImportFrom):
        return {alias.name for alias in node.names} <= _OWN_NAMES
    if isinstance(node, ast.FunctionDef):
        return node.name in ("migrate_setup", "rollback_setup")
    return isinstance(node, ast.Assign) and any(
        isinstance(target, ast.Name) and target.id == "metadata" for target in node.targets
    )


def _without(node: ast.stmt) -> _Edit:
    return _Edit(node.lineno - 1, node.end_lineno or node.lineno, "")


def _renamed(lines: Sequence[str], function: ast.FunctionDef, old: str, new: str) -> _Edit:
    line = lines[function.lineno - 1]
    return _Edit(
        function.lineno - 1, function.lineno, line.replace(f"def {old}(", f"def {new}(", 1)
    )

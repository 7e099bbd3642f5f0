"""Takes over scripts with `migrate(ckpt)`, `rollback(ckpt)` and `migrate_setup(context)`, as anemoi has them.

`migrate` becomes `handle`, `rollback` becomes `revert`, and classes and modules that the setup moves are renamed in the
checkpoint, where anemoi's loader is told to find them elsewhere. What it deletes needs nothing here: a class that is
not there any more is kept without being imported. The history that anemoi keeps in a checkpoint is read once.
"""

from __future__ import annotations

import ast
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from migrate_ckpt.adopting.adopted import (
    Adopted,
    functions_of,
    other_packages,
    read_source,
    write_all,
)
from migrate_ckpt.adopting.source_text import NotEditable, SourceText, bound_names
from migrate_ckpt.errors import InvalidMigrationFile
from migrate_ckpt.migration_file import parse
from migrate_ckpt.python_text import in_docstring, lay_out

_OWN_NAMES = {"CkptType", "MigrationContext", "MigrationMetadata"}
_MOVES = {"move_attribute": "{}", "move_module": "{}.*"}
_WITH_MOVES = ("handle", "revert", "MOVED", "rename_class")
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
        parse(path)
        text = SourceText(read_source(path))
    except (InvalidMigrationFile, SyntaxError, ValueError, RecursionError) as error:
        raise _Unusable(str(error).removeprefix(f"{path.name} ")) from error
    functions = functions_of(text.tree)
    for name in ("migrate", "rollback"):
        _check_takes_checkpoint(functions.get(name))
    moved = _moves(functions["migrate_setup"]) if "migrate_setup" in functions else []
    renamed = (
        {"migrate": "_migrate", "rollback": "_rollback"}
        if moved
        else {"migrate": "handle", "rollback": "revert"}
    )
    future = [ast.unparse(node) for node in text.tree.body if _is_future(node)]
    try:
        _check_names(text, renamed, {*renamed.values(), *(_WITH_MOVES if moved else ())})
        for node in text.tree.body:
            if _is_of_anemoi(node) or _is_future(node):
                text.remove(node)
        for old, new in renamed.items():
            text.rename(old, new)
        body = text.edited()
        packages = other_packages(ast.parse(body))
    except (NotEditable, SyntaxError) as error:
        raise _Unusable(str(error)) from error
    if packages:
        raise _Unusable(f"needs {', '.join(packages)}")
    needed = [
        name
        for old, name in renamed.items()
        if old not in functions and (moved or old == "migrate")
    ]
    body = body.strip("\n") + "".join(map(_passing, needed))
    lines = [*_head(path, future, moved), "", body + (_HANDLE if moved else "")]
    return _checked("\n".join(lines).rstrip() + "\n")


def _checked(text: str) -> str:
    """Return the text of a migration, which has been edited, if it is one."""
    try:
        with warnings.catch_warnings():
            # What Python thinks of a user's code is no matter here.
            warnings.simplefilter("ignore")
            # It finds more than the parser does, such as a misplaced import of `__future__`.
            compile(text, "migration", "exec", dont_inherit=True)
            is_migration = "handle" in functions_of(ast.parse(text))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _Unusable(f"would be no Python as a migration: {error}") from error
    if not is_migration:
        raise _Unusable("would define no `handle` as a migration")
    return text


def _check_names(text: SourceText, renamed: Mapping[str, str], written: set[str]) -> None:
    """Refuse a file in which a name that is renamed is another thing somewhere, or one that is written is taken."""
    functions = functions_of(text.tree)
    found = Counter(bound_names(text.tree))
    for old in renamed:
        if found[old] > (old in functions):
            raise _Unusable(f"has `{old}` as the name of more than one plain function")
    is_read = any(isinstance(node, ast.Name) and node.id in renamed for node in ast.walk(text.tree))
    # A variable of a function is in no one's way, unless the function that has the name is read there.
    hiding = set(renamed.values()) & set(found) if is_read else set()
    taken = sorted(written & text.own_names | hiding)
    if taken:
        raise _Unusable(f"has a `{taken[0]}` of its own")


def _head(path: Path, future: Sequence[str], moved: Sequence[str]) -> list[str]:
    title = path.stem.lstrip("0123456789_").replace("_", " ").capitalize() or path.stem
    head = [f'"""{in_docstring(title)}."""', ""]
    if future:
        head += [*future, ""]
    head.append("from migrate_ckpt import CkptType")
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
        return {alias.asname or alias.name for alias in node.names} <= _OWN_NAMES
    if isinstance(node, ast.FunctionDef):
        return node.name in ("migrate_setup", "rollback_setup")
    return isinstance(node, ast.Assign) and any(
        isinstance(target, ast.Name) and target.id == "metadata" for target in node.targets
    )


def _is_future(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__" and not node.level

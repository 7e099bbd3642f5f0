"""One file that holds a migration, read from its syntax tree and not run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from migrate_ckpt.digest import digest_of_tree, is_revert
from migrate_ckpt.errors import InvalidMigrationFile
from migrate_ckpt.history import is_usable_name

if TYPE_CHECKING:
    from typing import TypeGuard

_NO_FORM = (
    "defines no `handle` and no `operations`. Give it `def handle(ckpt): ... return ckpt` or "
    "`operations = [...]`, or, if it is no migration, a name that starts with an underscore."
)
_TWO_FORMS = (
    "has both `handle` and `operations`, and only one of them could run. Remove one, or call the "
    "operations in `handle`."
)


@dataclass(frozen=True, slots=True)
class MigrationFile:
    """A migration as its file tells of it; the title is the first line of its docstring.

    It is declared if it lists its operations, and not if it defines `handle`. It has requirements
    if it assigns `requires`, says how optimizers follow if it assigns `optimizer`, and how it is taken back if it
    defines `revert`. One that is squashed `replaces` others, by their names.
    """

    name: str
    path: Path
    title: str
    digest: str
    is_declared: bool = False
    has_requirements: bool = False
    has_optimizer_rules: bool = False
    has_revert: bool = False
    replaces: tuple[str, ...] = ()


def is_candidate(path: Path) -> bool:
    """Tell whether a path is taken for a migration."""
    return path.suffix == ".py" and not path.name.startswith(("_", ".")) and path.is_file()


def may_be_migration(path: Path) -> bool:
    """Tell whether a candidate is a migration, or too broken to tell."""
    try:
        tree = parse(path)
    except InvalidMigrationFile:
        # Not to be passed over as if it were a helper: reading the set will tell what is wrong.
        return True
    return _defines_handle(tree) or _assigns(tree, "operations")


def read_file(path: Path) -> MigrationFile:
    """Read one migration.

    Raises:
        InvalidMigrationFile: It has no usable name, is no Python, or does not have one of `handle`
            and `operations`.
    """
    name = path.stem
    if not is_usable_name(name):
        raise InvalidMigrationFile(
            f"The name of the migration {name!r} is too long or has unprintable characters.",
            path=path,
            name=name,
        )
    tree = parse(path)
    is_declared = _assigns(tree, "operations")
    if is_declared == _defines_handle(tree):
        what = _TWO_FORMS if is_declared else _NO_FORM
        raise InvalidMigrationFile(f"{path.name} {what}", path=path, name=name)
    return MigrationFile(
        name,
        path,
        _title(tree),
        digest_of_tree(tree),
        is_declared=is_declared,
        has_requirements=_assigns(tree, "requires"),
        has_optimizer_rules=_assigns(tree, "optimizer"),
        has_revert=any(map(is_revert, tree.body)),
        replaces=_replaces(tree, path),
    )


def parse(path: Path) -> ast.Module:
    """Return the syntax tree of a Python file, which is not run.

    Raises:
        InvalidMigrationFile: It cannot be read, or is no Python.
    """
    try:
        return ast.parse(path.read_bytes(), filename=path.name)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InvalidMigrationFile(
            f"{path.name} cannot be read as Python: {error}", path=path, name=path.stem
        ) from error


def _replaces(tree: ast.Module, path: Path) -> tuple[str, ...]:
    """Return the names that a file lists as `replaces`.

    Raises:
        InvalidMigrationFile: It is no list of texts.
    """
    found = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and _names(node) == ["replaces"]
    ]
    if not found:
        return ()
    try:
        names = ast.literal_eval(found[-1])
    except ValueError:
        names = None
    is_list = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    if not is_list or not names or len(set(names)) < len(names):
        raise InvalidMigrationFile(
            f"The `replaces` of {path.name} must be a list of the names of other migrations, each once, written out.",
            path=path,
            name=path.stem,
        )
    return tuple(names)


def _names(node: ast.Assign) -> list[str]:
    return [target.id for target in node.targets if isinstance(target, ast.Name)]


def _defines_handle(tree: ast.Module) -> bool:
    """Tell whether running the file may bind `handle`, in whatever way."""
    for node in _run_at_import(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names = [node.name]
        elif isinstance(node, ast.ImportFrom) and node.module == "migrate_ckpt.operations":
            # All of it may be asked for, and has none.
            names = [str(alias.asname) for alias in node.names]
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.asname or alias.name for alias in node.names]
        else:
            names = [node.id] if _is_assigned(node) else []
        if "handle" in names or "*" in names:
            return True
    return False


def _assigns(tree: ast.Module, name: str) -> bool:
    """Tell whether the file assigns a name; importing it, as a module of ours, is something else."""
    return any(_is_assigned(node) and node.id == name for node in _run_at_import(tree))


def _run_at_import(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield what runs when the file is imported; functions and classes are not entered."""
    stack: list[ast.AST] = [*tree.body]
    while stack:
        node = stack.pop()
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef, ast.Lambda)):
            stack += ast.iter_child_nodes(node)


def _is_assigned(node: ast.AST) -> TypeGuard[ast.Name]:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)


def _title(tree: ast.Module) -> str:
    """Return the first line of the file's docstring, or of that of `handle`."""
    handles = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "handle"]
    for text in (ast.get_docstring(tree), *map(ast.get_docstring, handles)):
        if text:
            return text.splitlines()[0]
    return ""

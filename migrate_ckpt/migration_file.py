"""One file that holds a migration, read from its syntax tree and not run."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

from migrate_ckpt.digest import digest_of_tree
from migrate_ckpt.errors import InvalidMigrationFile
from migrate_ckpt.history import is_usable_name


@dataclass(frozen=True, slots=True)
class MigrationFile:
    """A migration as its file tells of it; the title is the first line of its docstring."""

    name: str
    path: Path
    title: str
    digest: str


def is_candidate(path: Path) -> bool:
    """Tell whether a path is taken for a migration."""
    return path.suffix == ".py" and not path.name.startswith(("_", ".")) and path.is_file()


def may_be_migration(path: Path) -> bool:
    """Tell whether a candidate is a migration, or too broken to tell."""
    try:
        return _defines_handle(parse(path))
    except InvalidMigrationFile:
        # Not to be passed over as if it were a helper: reading the set will tell what is wrong.
        return True


def read_file(path: Path) -> MigrationFile:
    """Read one migration.

    Raises:
        InvalidMigrationFile: It has no usable name, is no Python, or does not define `handle`.
    """
    name = path.stem
    if not is_usable_name(name):
        raise InvalidMigrationFile(
            f"The name of the migration {name!r} is too long or has unprintable characters.",
            path=path,
            name=name,
        )
    tree = parse(path)
    if not _defines_handle(tree):
        raise InvalidMigrationFile(
            f"{path.name} defines no `handle`. Give it `def handle(ckpt): ... return ckpt`, or, "
            "if it is no migration, a name that starts with an underscore.",
            path=path,
            name=name,
        )
    return MigrationFile(name, path, _title(tree), digest_of_tree(tree))


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


def _defines_handle(tree: ast.Module) -> bool:
    """Tell whether running the file may bind `handle`; functions and classes are not entered."""
    stack: list[ast.AST] = [*tree.body]
    while stack:
        node = stack.pop()
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names = [node.name]
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.asname or alias.name for alias in node.names]
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names = [node.id]
        else:
            names = []
            if not isinstance(node, (ast.AsyncFunctionDef, ast.Lambda)):
                stack += ast.iter_child_nodes(node)
        if "handle" in names or "*" in names:
            return True
    return False


def _title(tree: ast.Module) -> str:
    """Return the first line of the file's docstring, or of that of `handle`."""
    handles = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "handle"]
    for text in (ast.get_docstring(tree), *map(ast.get_docstring, handles)):
        if text:
            return text.splitlines()[0]
    return ""

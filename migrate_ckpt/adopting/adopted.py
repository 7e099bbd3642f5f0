"""What was taken over, and what was not."""

from __future__ import annotations

import ast
import re
import sys
import tokenize
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from migrate_ckpt.errors import InvalidMigrationFile

KNOWN_PACKAGES = frozenset({"torch", "numpy", "migrate_ckpt"})

# The comment of PEP 263 that names an encoding; group 1 is what stands before the name.
_CODING = re.compile(r"^([ \t\f]*#.*?coding[:=][ \t]*)[-\w.]+", re.MULTILINE | re.ASCII)


@dataclass(frozen=True, slots=True)
class Adopted:
    """What came of it.

    Attributes:
        kind: The shape that was found, a few words.
        written: The files that were written.
        left: What was not taken over, each with the reason.
        notes: What a reader should know or do, a sentence each.
    """

    kind: str
    written: tuple[Path, ...]
    left: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


def read_source(path: Path) -> str:
    """Return the text of a Python file in the encoding that it names. As it is written in UTF-8, it then names that.

    Raises:
        InvalidMigrationFile: It cannot be read, decoded, or written in UTF-8.
    """
    try:
        with tokenize.open(path) as file:
            encoding, text = file.encoding, file.read()
        text.encode("utf-8")
    except (OSError, SyntaxError, ValueError, LookupError) as error:
        raise InvalidMigrationFile(
            f"{path.name} cannot be read as text: {error}", path=path, name=path.stem
        ) from error
    return text if encoding.startswith("utf-8") else _CODING.sub(r"\1utf-8", text, count=1)


def other_packages(tree: ast.Module) -> list[str]:
    """Return the packages that a file imports and that are not there wherever migrations run, sorted."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module.partition(".")[0])
    return sorted(found - KNOWN_PACKAGES - sys.stdlib_module_names)


def functions_of(tree: ast.Module) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def write_all(folder: Path, texts: Iterable[tuple[str, str]]) -> tuple[Path, ...]:
    """Write files that are not there yet; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in texts:
        path = folder / name
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
        written.append(path)
    return tuple(written)

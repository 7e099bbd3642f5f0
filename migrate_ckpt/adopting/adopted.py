"""What was taken over, and what was not."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

KNOWN_PACKAGES = frozenset({"torch", "numpy", "migrate_ckpt"})


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

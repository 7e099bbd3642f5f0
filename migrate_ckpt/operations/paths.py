"""Where in a checkpoint something stands: a path of names, written `a.b.c` or as a tuple."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

Path: TypeAlias = tuple[str, ...]
"""The names from the top of the checkpoint down; the top itself is `()`."""

PathLike: TypeAlias = str | Sequence[str]
"""Names joined by dots, or a tuple of names where one has a dot in it."""


def to_path(path: PathLike) -> Path:
    """Return the names of a path.

    Raises:
        TypeError: It is neither a text nor a tuple of texts.
        ValueError: A name is empty.
    """
    if isinstance(path, str):
        names = tuple(path.split(".")) if path else ()
    elif isinstance(path, tuple) and all(isinstance(name, str) for name in path):
        names = path
    else:
        raise TypeError(f"{path!r} is no path: write 'a.b.c', or a tuple of names.")
    if not all(names):
        raise ValueError(f"The path {path!r} has an empty name in it.")
    return names


def show_path(path: Iterable[str]) -> str:
    """Return a path as it is written in messages."""
    return ".".join(path) or "the checkpoint itself"


def write_path(path: Path) -> str:
    """Return a path as it could be written in Python."""
    return repr(path) if any("." in name for name in path) else repr(".".join(path))

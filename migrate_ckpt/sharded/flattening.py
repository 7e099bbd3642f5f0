"""How torch flattens the state dict of a distributed checkpoint into values that have paths, and one name each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from migrate_ckpt.errors import UnwritableCheckpoint
from migrate_ckpt.history import ckpt_migration_key, records_key
from migrate_ckpt.operations.sections import is_tensor

MAX_DEPTH = 64

KeyPath = tuple[Any, ...]
"""The names and positions from the top of the state dict down to a value."""


def flat_name(path: KeyPath) -> str:
    """Return the name that a path is flattened to."""
    return ".".join(map(str, path))


def flattened(ckpt: Any, is_one: Callable[[Any], bool]) -> list[tuple[KeyPath, Any]]:
    """Return the values of a state dict with their paths, as torch flattens it.

    Args:
        ckpt: The state dict.
        is_one: Tells of a value that it stays one, whatever it holds.

    Raises:
        UnwritableCheckpoint: There is one that no item can be.
    """
    try:
        return list(_walk(ckpt, is_one, ()))
    except RecursionError as error:
        raise UnwritableCheckpoint(
            "a distributed checkpoint can hold nothing that is in itself, or that is nested so deep"
        ) from error


def _walk(
    value: Any, is_one: Callable[[Any], bool], path: KeyPath
) -> Iterator[tuple[KeyPath, Any]]:
    import torch

    if is_tensor(value) and value.layout is not torch.strided:
        name = flat_name(path)
        raise UnwritableCheckpoint(
            f"a distributed checkpoint can hold no sparse tensor, as {name!r:.80} is",
            where=name[:80],
        )
    is_history = path in ((ckpt_migration_key,), (records_key,))
    if is_history or is_one(value) or not _is_split(value):
        yield path, value
    elif isinstance(value, Mapping):
        for key, child in value.items():
            yield from _walk(child, is_one, (*path, _text(key, path)))
    else:
        for position, child in enumerate(value):
            yield from _walk(child, is_one, (*path, position))


def _is_split(value: Any) -> bool:
    """Tell whether torch gives what is in a value names of its own (`_traverse.traverse_state_dict`, torch 2.13)."""
    if isinstance(value, Mapping):
        return bool(value)
    if isinstance(value, list):
        return any(
            is_tensor(part) or isinstance(part, Mapping) or _is_split(part) for part in value
        )
    # Torch never splits a tuple. Here tensors stay items, wherever they are: their bytes may not be there.
    return isinstance(value, tuple) and _has_tensor(value)


def _has_tensor(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_tensor, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_has_tensor, value))
    return is_tensor(value)


def _text(name: object, path: KeyPath) -> str:
    if not isinstance(name, str):
        where = flat_name((*path, name))
        raise UnwritableCheckpoint(
            f"a distributed checkpoint can hold no mapping with a key that is no text, as {where!r:.80} is",
            where=where[:80],
        )
    return name


def refuse_unreadable(paths: Iterable[KeyPath]) -> None:
    """Refuse paths that nobody could read again: torch tells values by what their paths are flattened to.

    Raises:
        UnwritableCheckpoint: One has a key that is no text, is too deep, or is flattened to the same name as another.
    """
    seen: set[str] = set()
    for path in paths:
        name = flat_name(path)
        if len(path) > MAX_DEPTH:
            what = f"nothing that is nested deeper than {MAX_DEPTH} times, as {name!r:.80} is"
        elif name in seen:
            what = f"no two values that are both called {name!r:.80}"
        else:
            seen.add(name)
            continue
        raise UnwritableCheckpoint(f"a distributed checkpoint can hold {what}", where=name[:80])

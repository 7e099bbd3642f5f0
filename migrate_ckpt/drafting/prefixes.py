"""Finds what stands before all keys of a state dict, and before none of another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from migrate_ckpt.drafting.pairing import shared_beginning
from migrate_ckpt.operations.renaming import AddPrefix, StripPrefix
from migrate_ckpt.operations.state_dict_operation import StateDictOperation

FEW_DEPTHS = 2
"""With keys of so few depths, other names are as short to write as another prefix."""


def find_prefixes(
    pairs: Sequence[tuple[str, str]], state_dict: Mapping[str, Any]
) -> Iterator[StateDictOperation]:
    """Yield what takes a prefix off all keys or puts one on; the pairs are of old and new keys."""
    if not pairs:
        return
    old, new = _common(state_dict), _common(target for _, target in pairs)
    while old and new and old[-1] == new[-1]:
        old.pop()
        new.pop()
    if old and new and len(old) != len(new):
        # What stands at the same depth from below was renamed.
        old, new = old[: max(len(old) - len(new), 0)], new[: max(len(new) - len(old), 0)]
    if not _explains_depths(len(new) - len(old), pairs):
        return
    if old and new and not _replaces_many(".".join(old) + ".", ".".join(new) + ".", pairs):
        return
    if old and _strips_once(old, state_dict):
        yield StripPrefix((".".join(old),))
    elif old:
        return
    if new:
        yield AddPrefix(".".join(new))


def _explains_depths(more: int, pairs: Sequence[tuple[str, str]]) -> bool:
    """Tell whether most keys have got so many components more."""
    explained = [new.count(".") - old.count(".") == more for old, new in pairs]
    return 2 * sum(explained) > len(pairs)


def _replaces_many(before: str, after: str, pairs: Sequence[tuple[str, str]]) -> bool:
    """Tell whether another prefix says of most keys all, and of more than templates could say as shortly."""
    moved = [old for old, new in pairs if after + old.removeprefix(before) == new]
    depths = {key.count(".") for key in moved}
    return 2 * len(moved) >= len(pairs) and len(depths) > FEW_DEPTHS


def _common(keys: Iterable[str]) -> list[str]:
    """Return the modules that all keys have in front."""
    return shared_beginning([key.split(".")[:-1] for key in keys])


def _strips_once(prefix: Sequence[str], state_dict: Mapping[str, Any]) -> bool:
    """Tell whether taking off a prefix, as often as it comes, takes it off once."""
    operation = StripPrefix((".".join(prefix),))
    text = ".".join(prefix) + "."
    return all(
        move.targets[0] == move.sources[0].removeprefix(text)
        for move in operation.moves(state_dict)
    )

"""Finds layers that have other numbers, from pairs of keys."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from migrate_ckpt.errors import OperationError
from migrate_ckpt.operations.reindexing import Reindex

MAX_LEVELS = 3


def find_renumberings(
    pairs: Sequence[tuple[str, str]], state_dict: Mapping[str, Any]
) -> Iterator[Reindex]:
    """Yield what gives layers the numbers that they have in the new keys; the pairs are of old and new ones.

    The outer numbers come first. Each is tried out on the state dict, which is not changed.
    """
    current = {old: old for old, _ in pairs}
    state = dict(state_dict)
    for level in range(MAX_LEVELS):
        for layers, numbers in _numbers_at(level, [(current[a], b) for a, b in pairs]).items():
            operation = _renumbering(layers, numbers)
            if operation is None or not _covers(operation, numbers, state):
                continue
            try:
                moves = operation.moves(state)
                operation(state)
            except OperationError:
                continue
            moved = {move.sources[0]: move.targets[0] for move in moves}
            current = {old: moved.get(now, now) for old, now in current.items()}
            yield operation


def _numbers_at(level: int, pairs: Iterable[tuple[str, str]]) -> dict[str, dict[int, set[int]]]:
    found: dict[str, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for old, new in pairs:
        places, numbers = _numbered(old)
        _, new_numbers = _numbered(new)
        if level < len(numbers):
            same_depth = len(numbers) == len(new_numbers)
            layers = _layers(old, places, level)
            # What has no number to compare cannot be said to have another one.
            found[layers][numbers[level]].add(new_numbers[level] if same_depth else -1)
    return found


def _numbered(key: str) -> tuple[list[int], list[int]]:
    names = key.split(".")
    places = [n for n, name in enumerate(names) if name.isdecimal()]
    return places, [int(names[place]) for place in places]


def _layers(key: str, places: Sequence[int], level: int) -> str:
    names = key.split(".")
    for placeholder, place in zip("jkl", places[:level], strict=False):
        names[place] = f"{{{placeholder}}}"
    return ".".join([*names[: places[level]], "{i}"])


def _renumbering(layers: str, numbers: Mapping[int, set[int]]) -> Reindex | None:
    if any(len(news) > 1 for news in numbers.values()):
        return None
    became = {old: next(iter(news)) for old, news in numbers.items()}
    if -1 in became.values() or len(set(became.values())) < len(became):
        return None
    if all(old == new for old, new in became.items()):
        return None
    shifts = {new - old for old, new in became.items()}
    if len(shifts) == 1:
        return Reindex(layers, shift=shifts.pop())
    changed = sorted((old, new) for old, new in became.items() if old != new)
    return Reindex(layers, tuple(changed))


def _covers(
    operation: Reindex, numbers: Mapping[int, set[int]], state_dict: Mapping[str, Any]
) -> bool:
    """Tell whether it moves no layer of which nothing is known."""
    try:
        moves = operation.moves(state_dict)
    except OperationError:
        return False
    known = numbers.keys()
    place = operation.layers.count(".")
    return all(int(move.sources[0].split(".")[place]) in known for move in moves)

"""Writes many moves of keys as few templates, none of which means a key that is not to be moved."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple, TypeAlias

from migrate_ckpt.errors import OperationError
from migrate_ckpt.operations.moves import Move

MAX_PLACEHOLDERS = 5


class Names(NamedTuple):
    """The keys, or templates, that a move takes, and those that it gives."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]


MovesOf: TypeAlias = Callable[[Names], Sequence[Move]]
"""Tells which moves an operation with these templates would make; may raise what the operation raises."""


def best_template(
    first: Names, wanted: Collection[Names], moves_of: MovesOf
) -> tuple[Names, list[Names]]:
    """Return the template that stands for most of the wanted moves, the first among them, and those moves.

    It has no more placeholders than it needs.
    """
    keys = [*first.sources, *first.targets]
    places = _places(keys)
    best, covered = first, [first]
    chosen: tuple[int, ...] = ()
    tried: list[set[int]] = []
    for subset in _subsets(places):
        if any(set(subset) <= wider for wider in tried):
            continue
        template = _with_placeholders(first, places, subset)
        moves = _valid_moves(template, wanted, moves_of)
        if moves:
            # With fewer placeholders it would stand for less.
            tried.append(set(subset))
            if len(moves) > len(covered):
                best, covered, chosen = template, moves, subset
    for place in chosen:
        fewer = tuple(other for other in chosen if other != place)
        template = _with_placeholders(first, places, fewer)
        if len(_valid_moves(template, wanted, moves_of)) == len(covered):
            best, chosen = template, fewer
    return best, covered


def _subsets(places: Sequence[tuple[int, ...]]) -> Iterator[tuple[int, ...]]:
    for count in range(len(places), 0, -1):
        yield from itertools.combinations(range(len(places)), count)


def _valid_moves(template: Names, wanted: Collection[Names], moves_of: MovesOf) -> list[Names]:
    """Return the moves that a template makes, all of which are wanted; none if one is not."""
    try:
        moves = [Names(move.sources, move.targets) for move in moves_of(template)]
    except (OperationError, ValueError):
        return []
    return moves if all(move in wanted for move in moves) else []


def _places(keys: Sequence[str]) -> list[tuple[int, ...]]:
    """Return the components that all keys have in common: for each its place in every key."""
    split = [key.split(".") for key in keys]
    common: list[tuple[int, ...]] = [(n,) for n in range(len(split[0]))]
    for other in split[1:]:
        blocks = SequenceMatcher(None, split[0], other, autojunk=False).get_matching_blocks()
        at = {b.a + n: b.b + n for b in blocks for n in range(b.size)}
        common = [(*places, at[places[0]]) for places in common if places[0] in at]
    if len(common) > MAX_PLACEHOLDERS:
        # What varies is mostly a number, or stands at the end.
        numbers = [places for places in common if split[0][places[0]].isdecimal()]
        common = sorted({*numbers[:3], *common[len(numbers[:3]) - MAX_PLACEHOLDERS :]})
    return common


def _with_placeholders(
    names: Names, places: Sequence[tuple[int, ...]], subset: Collection[int]
) -> Names:
    split = [key.split(".") for key in (*names.sources, *names.targets)]
    numbers, words = iter("ijklm"), iter(("name", "part", "module", "block", "group"))
    for n, each in enumerate(places):
        if n not in subset:
            continue
        text = split[0][each[0]]
        is_last = each[0] == len(split[0]) - 1
        placeholder = next(numbers) if text.isdecimal() else "kind" if is_last else next(words)
        for key, place in zip(split, each, strict=True):
            key[place] = f"{{{placeholder}}}"
    keys = tuple(map(".".join, split))
    return Names(keys[: len(names.sources)], keys[len(names.sources) :])


def template_over(keys: Sequence[str]) -> str | None:
    """Return the template of keys that differ in one component, which counts them from 0 on; its placeholder is `n`."""
    split = [key.split(".") for key in keys]
    if len({len(key) for key in split}) > 1:
        return None
    for place in range(len(split[0])):
        rest = {(*key[:place], *key[place + 1 :]) for key in split}
        if len(rest) == 1 and [key[place] for key in split] == [str(n) for n in range(len(keys))]:
            return ".".join([*split[0][:place], "{n}", *split[0][place + 1 :]])
    return None

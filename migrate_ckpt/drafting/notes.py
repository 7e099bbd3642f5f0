"""What a draft leaves to its author, in sentences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from migrate_ckpt.drafting.braces import Group, has_brace
from migrate_ckpt.drafting.composing import Composed
from migrate_ckpt.drafting.matching import Match
from migrate_ckpt.drafting.sides import Side
from migrate_ckpt.operations.moves import identity, list_keys
from migrate_ckpt.operations.paths import Path as KeyPath
from migrate_ckpt.operations.paths import show_path
from migrate_ckpt.operations.sections import find_sections
from migrate_ckpt.optimizers.states import find_optimizers

if TYPE_CHECKING:
    import torch


def find_notes(
    before: Side, after: Side, match: Match, composed: Composed, unknown: Sequence[str]
) -> Iterator[str]:
    """Yield a sentence for each thing that no operation is written for.

    Args:
        before: The old side.
        after: The new side.
        match: What is known of the two state dicts.
        composed: The operations, and what is undecided.
        unknown: The new keys of what is no dense tensor and that no old one has become.
    """
    yield from _of_places(before, after)
    yield from _of_keys(before, after, composed.undecided)
    if unknown:
        yield f"No dense tensors, and only in the new state dict: {list_keys(sorted(unknown))}."
    yield from _of_order(before, after, composed)
    if before.has_content and after.has_content:
        yield from _of_ties(match, before.tensors, after.tensors)


def _of_places(before: Side, after: Side) -> Iterator[str]:
    for bare, held, verb in ((before, after, "wrap"), (after, before, "unwrap")):
        if bare.path == () and held.path:
            one, other = ("old", "new") if bare is before else ("new", "old")
            hint = (
                f": if that is meant, add {verb}({held.path[0]!r})" if len(held.path) == 1 else ""
            )
            yield (
                f"The {one} file is a state dict itself, and the {other} one holds it under "
                f"{show_path(held.path)!r}{hint}."
            )


def _of_keys(before: Side, after: Side, undecided: Sequence[Group]) -> Iterator[str]:
    if any(has_brace(key) for group in undecided for keys in group for key in keys):
        yield "A template cannot name keys with braces in them, but a compiled regex can."
    numbers = [_other_names(side.ckpt, side.path) for side in (before, after)]
    if numbers[0] != numbers[1]:
        yield f"Keys that are no text are not compared: {list_keys(sorted(numbers[0] ^ numbers[1]))}."


def _of_order(before: Side, after: Side, composed: Composed) -> Iterator[str]:
    """Yield a sentence where the order of the keys is not the new one, and may matter."""
    if not all(
        side.ckpt is not None and find_optimizers(side.ckpt, []) for side in (before, after)
    ):
        return
    made = [key for key in composed.keys if key in after.tensors]
    left = set(made)
    if made != [key for key in after.tensors if key in left]:
        yield (
            "There is an optimizer, whose states may go by position, and the new state dict has its keys in another "
            "order. If that is the order of the parameters, say it: optimizer = follow(order_after=[...])."
        )


def _other_names(ckpt: Any, path: KeyPath | None) -> set[str]:
    """Return the keys of a state dict that are no text, as texts."""
    if path is None:
        return set()
    ((_, state_dict),) = find_sections(ckpt, (path,))
    return {repr(key) for key in state_dict if type(key) is not str}


def _of_ties(
    match: Match, old: Mapping[str, torch.Tensor], new: Mapping[str, torch.Tensor]
) -> Iterator[str]:
    """Yield a sentence for each group of keys that is one tensor on one side only."""
    sources = {key: key for key in match.kept if key in old}
    sources |= {m.target: m.sources[0] for m in match.makings.values() if m.sources[0] in old}
    before = _tied({key: old[source] for key, source in sources.items()})
    after = _tied({key: new[key] for key in sources})
    for keys in sorted(after - before, key=sorted):
        yield f"One tensor in the new state dict, and not in the old one: {list_keys(sorted(keys))}; `tie` makes it so."
    for keys in sorted(before - after, key=sorted):
        yield (
            f"One tensor in the old state dict, and not in the new one: {list_keys(sorted(keys))}; "
            "`untie` makes it so."
        )


def _tied(tensors: Mapping[str, torch.Tensor]) -> set[frozenset[str]]:
    groups: dict[Hashable, set[str]] = defaultdict(set)
    for key, tensor in tensors.items():
        groups[identity(tensor)].add(key)
    return {frozenset(keys) for keys in groups.values() if len(keys) > 1}

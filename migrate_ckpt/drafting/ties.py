"""Tells which tensors are one in one state dict, and several in the other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping
from typing import TYPE_CHECKING

from migrate_ckpt.drafting.matching import Match
from migrate_ckpt.operations.moves import identity, list_keys

if TYPE_CHECKING:
    import torch


def find_ties(
    match: Match, old: Mapping[str, torch.Tensor], new: Mapping[str, torch.Tensor]
) -> Iterator[str]:
    """Yield a sentence for each group of keys that is one tensor on one side only."""
    sources = {key: key for key in match.kept if key in old}
    sources |= {m.target: m.sources[0] for m in match.makings.values() if m.sources[0] in old}
    before = _tied({key: old[source] for key, source in sources.items()})
    after = _tied({key: new[key] for key in sources})
    for keys in after - before:
        yield f"One tensor in the new state dict, and not in the old one: {list_keys(sorted(keys))}; `tie` makes it so."
    for keys in before - after:
        yield (
            f"One tensor in the old state dict, and not in the new one: {list_keys(sorted(keys))}; "
            "`untie` makes it so."
        )


def _tied(tensors: Mapping[str, torch.Tensor]) -> set[frozenset[str]]:
    groups: dict[Hashable, set[str]] = defaultdict(set)
    for key, tensor in tensors.items():
        groups[identity(tensor)].add(key)
    return {frozenset(keys) for keys in groups.values() if len(keys) > 1}

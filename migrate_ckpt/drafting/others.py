"""What stands in state dicts beside dense tensors: extra state of modules, sparse and quantised tensors, plain values.

It is never computed with, only kept, renamed and dropped, so that what is alike is as good as the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping
from typing import Any

from migrate_ckpt.drafting.labels import is_dense
from migrate_ckpt.drafting.makings import Making
from migrate_ckpt.drafting.matching import Match
from migrate_ckpt.drafting.pairing import pair_names

UNKNOWN = object()
"""Stands for a value of which only the name is known, as of a manifest's."""


def forms_of(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict with the shapes and dtypes of dense tensors in their place, to try operations on."""
    return {
        key: value.to("meta") if is_dense(value) else value for key, value in state_dict.items()
    }


def pair_others(
    match: Match, old: Mapping[str, Hashable], new: Mapping[str, Hashable]
) -> list[str]:
    """Add to the match of the tensors what became of other values, of which the labels are given.

    Returns:
        The new keys that no old one has become.
    """
    for key in old.keys() & new.keys():
        match.kept.add(key)
        if old[key] != new[key]:
            match.changed.append(key)
    olds = {key: label for key, label in old.items() if key not in new}
    news = {key: label for key, label in new.items() if key not in old}
    pairs = pair_names(olds, news, match.known_pairs(), counts_layers=False)
    for new_key, old_key in pairs.items():
        _pair(match, olds, news, old_key, new_key)
    groups: dict[Hashable, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for keys, number in ((olds, 0), (news, 1)):
        for key, label in keys.items():
            groups[label][number].append(key)
    unknown = []
    for before, after in groups.values():
        if len(before) == len(after) == 1:
            _pair(match, olds, news, before[0], after[0])
        elif before and after:
            match.undecided.append((tuple(before), tuple(after)))
        else:
            match.dropped += before
            unknown += after
    return unknown


def _pair(
    match: Match, olds: dict[str, Hashable], news: dict[str, Hashable], old: str, new: str
) -> None:
    match.makings[new] = Making.of_one(new, old, certainty="likely")
    del olds[old], news[new]

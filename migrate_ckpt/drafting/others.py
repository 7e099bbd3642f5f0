"""What stands in state dicts beside dense tensors: extra state of modules, sparse and quantised tensors, plain values.

It is never computed with, only kept, renamed and dropped, so that what is alike is as good as the same.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

from migrate_ckpt.content_hashes import hash_whole
from migrate_ckpt.drafting.makings import Making
from migrate_ckpt.drafting.matching import Match
from migrate_ckpt.drafting.pairing import pair_names
from migrate_ckpt.foreign import ForeignGlobal, ForeignObject, global_path, recipe
from migrate_ckpt.formats.storages import StorageHandle
from migrate_ckpt.operations.sections import is_tensor

MAX_DEPTH = 64
_BLOCK_BYTES = 1 << 20

UNKNOWN = object()
"""Stands for a value of which only the name is known, as of a manifest's."""


def is_dense(value: Any) -> bool:
    """Tell whether a value is a tensor that operations can compute with."""
    if not is_tensor(value):
        return False
    import torch

    return value.layout is torch.strided and not value.is_quantized


def forms_of(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict with the shapes and dtypes of dense tensors in their place, to try operations on."""
    return {
        key: value.to("meta") if is_dense(value) else value for key, value in state_dict.items()
    }


def label_of(value: Any) -> Hashable:
    """Return what two values have in common if and only if they hold the same, as far as it can be told.

    What cannot be compared has a label that nothing else has.
    """
    return _label(value, 0)


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


def _label(value: Any, depth: int) -> Hashable:
    if depth > MAX_DEPTH:
        return object()
    if isinstance(value, StorageHandle):
        return global_path(value.type), value.numel, _digest(value)
    if isinstance(value, ForeignGlobal):
        return "global", global_path(value)
    if isinstance(value, ForeignObject):
        return "object", *(_label(part, depth + 1) for part in _parts(value))
    if is_dense(value):
        return "tensor", str(value.dtype), tuple(value.shape), _content(value)
    if type(value) in (type(None), bool, int, str, bytes):
        return type(value).__name__, value
    if type(value) is float:
        # A NaN is like no other value, and here it is the same.
        return "float", value.hex()
    if isinstance(value, Mapping):
        items = ((key, _label(child, depth + 1)) for key, child in value.items())
        return type(value).__name__, *((_label(key, depth + 1), child) for key, child in items)
    if isinstance(value, list | tuple):
        return type(value).__name__, *(_label(child, depth + 1) for child in value)
    # Of sets and what else there may be, what torch itself makes of it: a dtype, a device.
    return type(value).__name__, value if isinstance(value, Hashable) else object()


def _parts(value: ForeignObject) -> Iterator[Any]:
    made = recipe(value)
    items = list(made.items.items()) if isinstance(made.items, dict) else made.items
    yield from (made.function, made.args, made.kwargs, made.state, items, dict(vars(value)))


def _content(tensor: Any) -> Hashable:
    return None if tensor.is_meta else hash_whole(tensor)


def _digest(handle: StorageHandle) -> Hashable:
    container = handle.container
    if container is None or handle.key not in container.storages:
        return object()
    stored, digest = container.storages[handle.key], hashlib.sha256()
    end = stored.data_offset + stored.size
    for start in range(stored.data_offset, end, _BLOCK_BYTES):
        digest.update(container.source.read(start, min(_BLOCK_BYTES, end - start)))
    return digest.digest()

"""Compares what two checkpoints hold, down to the bits of their tensors. The order of names does not count."""

from __future__ import annotations

import sys
from collections.abc import Collection, Hashable, Mapping
from typing import TYPE_CHECKING

from migrate_ckpt.history import ckpt_migration_key, records_key
from migrate_ckpt.operations.tensor_actions import have_equal_bits
from migrate_ckpt.outline import OutlineEntry, outline

if TYPE_CHECKING:
    import torch

    from migrate_ckpt.migration import CkptType


def find_unlike(
    one: CkptType, other: CkptType, *, written: Collection[str] = ()
) -> list[tuple[str, ...]]:
    """Return the paths at which two checkpoints hold not the same, the history aside.

    Tensors are the same if dtype, shape and bits are. Both may be of one file: what shows the same bytes of it is not
    read, unless it is of a storage that was written to in memory.

    Args:
        one: A checkpoint.
        other: Another one.
        written: The keys of the storages that were written to.
    """
    entries, others = _entries(one, written), _entries(other, written)
    paths = dict.fromkeys([*entries, *others])
    return [path for path in paths if entries.get(path) != others.get(path)]


def _entries(ckpt: CkptType, written: Collection[str]) -> dict[tuple[str, ...], OutlineEntry]:
    entries = outline(ckpt, max_entries=sys.maxsize, identify=lambda tensor: _Bits(tensor, written))
    left_out: set[tuple[str, ...]] = {(ckpt_migration_key,), (records_key,)}
    if isinstance(ckpt, Mapping):
        # That it is empty does not show in one with a history.
        left_out.add(())
    return {entry.path: entry for entry in entries if entry.path[:1] not in left_out}


class _Bits:
    """The bits of a tensor, to be compared with those of another."""

    def __init__(self, tensor: torch.Tensor, written: Collection[str]) -> None:
        self._tensor = tensor
        self._place = _place(tensor, written)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Bits):
            return False
        if self._place is not None and self._place == other._place:
            return True
        return have_equal_bits(self._tensor, other._tensor)

    def __hash__(self) -> int:
        return hash(tuple(self._tensor.shape))


def _place(tensor: torch.Tensor, written: Collection[str]) -> Hashable:
    """Tell where in a file the bytes of a tensor are; None if they are in memory alone."""
    # Loading torch takes a second, which those who import this need not wait.
    from migrate_ckpt.formats.tensors import HANDLE

    handle = getattr(tensor.untyped_storage(), HANDLE, None)
    if handle is None or handle.key in written:
        return None
    return handle.key, tensor.dtype, tensor.storage_offset(), tensor.stride()

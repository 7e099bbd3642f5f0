"""The storages of a copy of a checkpoint that was read from files: the same files, mapped into memory once more.

So the copy has memory of its own, which costs nothing but where one of the two is written to, and is written to a file
as what it is copied from would be: ranges of the source, with the same device tags.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch

from migrate_ckpt.formats.container import Container
from migrate_ckpt.formats.mapped import Part
from migrate_ckpt.formats.storages import StorageHandle
from migrate_ckpt.formats.tensors import MappedTensors


class _Twin(NamedTuple):
    """A container, the same one mapped once more, and the keys of what was written to in the memory of the first."""

    original: Container
    container: Container
    tensors: MappedTensors
    changed: set[str]


class Twins:
    """What stands in a copy for the storages of containers."""

    def __init__(self) -> None:
        # The original container is kept: an identity is only good while its owner lives.
        self._known: dict[int, _Twin] = {}

    def is_changed(self, handle: StorageHandle) -> bool:
        """Whether a storage is not in memory what it is in the file, so that its bytes are copied."""
        twin = self._of(handle)
        return twin is not None and handle.key in twin.changed

    def handle(self, handle: StorageHandle) -> StorageHandle:
        """The handle of the same storage in the copy; the same one where its file cannot be mapped by itself."""
        twin = self._of(handle)
        if twin is None:
            return handle
        return twin.tensors.storage(
            ("storage", handle.type, handle.key, handle.location, handle.numel)
        )

    def storage(
        self, handle: StorageHandle, storage: torch.UntypedStorage
    ) -> torch.UntypedStorage | None:
        """The storage that has the bytes of this one; None where its file cannot be mapped by itself."""
        twin = self._of(handle)
        if twin is None:
            return None
        made = twin.tensors.mapped_storage(self.handle(handle))
        if handle.key in twin.changed:
            made.copy_(storage)
        return made

    def _of(self, handle: StorageHandle) -> _Twin | None:
        original = handle.container
        # The parts of a file are mapped as one, with all that belongs to other parts.
        if original is None or isinstance(original.source, Part):
            return None
        if id(original) not in self._known:
            container = copy.copy(original)
            vars(container).pop("mapped", None)
            changed = original.mapped.changed(original.storages)
            self._known[id(original)] = _Twin(
                original, container, MappedTensors(container), changed
            )
        return self._known[id(original)]

"""Tensors whose bytes were not fetched: they are on torch's device `meta`, and whoever wants to read one says so."""

from __future__ import annotations

from typing import Any, Protocol

# Where a storage keeps whom to tell: torch gives the same Python object for a storage as long as the storage lives.
_BYTES = "_migrate_ckpt_absent_bytes"


class AbsentBytes(Protocol):
    """The bytes of a storage that were not fetched."""

    def note(self) -> None:
        """Note that they will be needed."""

    def refuse(self) -> None:
        """Let nothing go on without them."""


def mark_absent(storage: Any, absent: AbsentBytes) -> None:
    """Let a storage stand for bytes that were not fetched."""
    setattr(storage, _BYTES, absent)


def is_absent(tensor: Any) -> bool:
    """Tell whether a tensor is one whose bytes were not fetched."""
    return bool(tensor.is_meta) and hasattr(tensor.untyped_storage(), _BYTES)


def note_read(tensor: Any) -> None:
    """Say that the bytes of a tensor will be read. What is made of it before they are there has no bytes either."""
    absent: AbsentBytes | None = getattr(tensor.untyped_storage(), _BYTES, None)
    if absent is not None:
        absent.note()


def refuse_absent(storage: Any) -> None:
    """Let nothing go on if the bytes of a storage were not fetched."""
    absent: AbsentBytes | None = getattr(storage, _BYTES, None)
    if absent is not None:
        absent.refuse()

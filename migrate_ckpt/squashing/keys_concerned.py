"""Tells which keys an operation on state dicts takes away, gives and looks at, as far as its arguments say it."""

from __future__ import annotations

from collections.abc import Sequence

from migrate_ckpt.operations.contents import Add, Drop
from migrate_ckpt.operations.operation import Operation
from migrate_ckpt.operations.patterns import KeyPattern
from migrate_ckpt.operations.renaming import Rename
from migrate_ckpt.operations.reshaping import Cast, Concat, Split
from migrate_ckpt.operations.stacking import Stack, Unstack
from migrate_ckpt.operations.transforming import OnEach

_KNOWN = (Rename, Split, Concat, Stack, Unstack, Drop, Add, OnEach, Cast)


def keys_of(operation: Operation) -> Sequence[KeyPattern] | None:
    """Return all keys that an operation concerns; None where it may be any."""
    if not isinstance(operation, _KNOWN) or (isinstance(operation, Cast) and not operation.keys):
        return None
    return [*keys_taken(operation), *keys_given(operation), *_keys_seen(operation)]


def keys_left(operation: Operation) -> Sequence[KeyPattern]:
    """Return the keys that are there once an operation is done, as far as it says so."""
    return [*keys_given(operation), *_keys_seen(operation)]


def keys_taken(operation: Operation) -> Sequence[KeyPattern]:
    """Return the keys that an operation takes away, all that there are."""
    if isinstance(operation, Rename):
        return [old for old, _ in operation.pairs]
    if isinstance(operation, Split | Stack | Unstack):
        return [operation.source]
    if isinstance(operation, Concat):
        return operation.sources
    return operation.keys if isinstance(operation, Drop) else []


def keys_given(operation: Operation) -> Sequence[str]:
    """Return the keys and templates by which an operation names what it makes."""
    if isinstance(operation, Rename):
        return [new for _, new in operation.pairs]
    if isinstance(operation, Split):
        return operation.targets
    if isinstance(operation, Concat | Stack | Unstack):
        return [operation.target]
    return [operation.key] if isinstance(operation, Add) else []


def _keys_seen(operation: Operation) -> Sequence[KeyPattern]:
    """Return the keys that an operation looks at, or changes the tensors of, and that stay."""
    if isinstance(operation, OnEach):
        return operation.keys
    if isinstance(operation, Cast):
        return operation.keys or []
    if isinstance(operation, Add):
        return [key for key in (operation.like, operation.copy_of) if key]
    return []

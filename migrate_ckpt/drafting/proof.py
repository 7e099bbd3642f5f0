"""Proves that operations make one state dict of another, bit by bit, with one tensor at a time in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from migrate_ckpt.drafting.labels import is_dense, label_of
from migrate_ckpt.drafting.others import UNKNOWN, forms_of
from migrate_ckpt.operations.moves import Move
from migrate_ckpt.operations.state_dict_operation import StateDictOperation
from migrate_ckpt.operations.tensor_actions import have_equal_bits


def find_differing(
    operations: Iterable[StateDictOperation],
    old: Mapping[str, Any],
    new: Mapping[str, Any],
) -> list[str]:
    """Return the keys of which the operations do not make of the old state dict what is in the new one.

    Of tensors on the device `meta` shapes and dtypes are compared.
    """
    trace = _Trace(operations, old)
    differing = [key for key in trace.keys if key not in new]
    for key, value in new.items():
        if key not in trace.keys or not _are_equal(trace.value_of(key), value):
            differing.append(key)
    return differing


def _are_equal(one: Any, other: Any) -> bool:
    if is_dense(one) and is_dense(other):
        return have_equal_bits(one, other)
    is_unknown = one is UNKNOWN or other is UNKNOWN
    return is_unknown or label_of(one) == label_of(other)


class _Trace:
    """The moves that operations make, so that each tensor can be made by itself."""

    def __init__(self, operations: Iterable[StateDictOperation], old: Mapping[str, Any]) -> None:
        self._old = old
        self._made_by: list[dict[str, tuple[Move, int]]] = []
        state = forms_of(old)
        for operation in operations:
            moves = operation.moves(state)
            self._made_by.append(
                {key: (move, n) for move in moves for n, key in enumerate(move.targets)}
            )
            operation(state)
        self.keys = frozenset(state)
        self._last: tuple[int, Move, Sequence[Any]] | None = None

    def value_of(self, key: str) -> Any:
        return self._value(len(self._made_by), key)

    def _value(self, level: int, key: str) -> Any:
        """Return what stands under a key after so many operations."""
        while level:
            level -= 1
            if key in self._made_by[level]:
                move, number = self._made_by[level][key]
                return self._values(level, move)[number]
        return self._old[key]

    def _values(self, level: int, move: Move) -> Sequence[Any]:
        # The parts of a tensor follow each other mostly, and it need not be cut for each.
        if self._last is not None and self._last[0] == level and self._last[1] is move:
            return self._last[2]
        values = move.action([self._value(level, source) for source in move.sources])
        if len(move.targets) > 1:
            self._last = level, move, values
        return values

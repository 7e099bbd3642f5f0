"""Proves that operations make one state dict of another, bit by bit, with one tensor at a time in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from migrate_ckpt.operations.moves import Move
from migrate_ckpt.operations.state_dict_operation import StateDictOperation
from migrate_ckpt.operations.tensor_actions import have_equal_bits

if TYPE_CHECKING:
    import torch


def find_differing(
    operations: Iterable[StateDictOperation],
    old: Mapping[str, torch.Tensor],
    new: Mapping[str, torch.Tensor],
) -> list[str]:
    """Return the keys of which the operations do not make of the old state dict what is in the new one.

    Of tensors on the device `meta` shapes and dtypes are compared.
    """
    trace = _Trace(operations, old)
    differing = [key for key in trace.keys if key not in new]
    for key, tensor in new.items():
        if key not in trace.keys or not have_equal_bits(trace.value_of(key), tensor):
            differing.append(key)
    return differing


class _Trace:
    """The moves that operations make, so that each tensor can be made by itself."""

    def __init__(
        self, operations: Iterable[StateDictOperation], old: Mapping[str, torch.Tensor]
    ) -> None:
        self._old = old
        self._made_by: list[dict[str, tuple[Move, int]]] = []
        state: dict[str, Any] = {key: tensor.to("meta") for key, tensor in old.items()}
        for operation in operations:
            moves = operation.moves(state)
            self._made_by.append(
                {key: (move, n) for move in moves for n, key in enumerate(move.targets)}
            )
            operation(state)
        self.keys = frozenset(state)
        self._last: tuple[int, Move, Sequence[Any]] | None = None

    def value_of(self, key: str) -> torch.Tensor:
        tensor: torch.Tensor = self._value(len(self._made_by), key)
        return tensor

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

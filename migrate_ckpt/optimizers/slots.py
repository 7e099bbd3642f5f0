"""Slots: the parameters that an optimizer holds, each with its keys in the state dict and its state."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from migrate_ckpt.operations.moves import identity
from migrate_ckpt.operations.patterns import KeyPattern, match
from migrate_ckpt.operations.sections import is_tensor, own_keys
from migrate_ckpt.optimizers.ordering import tree_order
from migrate_ckpt.optimizers.states import Position

_BATCH_NORM_BUFFERS = ("running_mean", "running_var")


@dataclass(frozen=True, eq=False)
class Slot:
    """One parameter of an optimizer.

    Attributes:
        keys: The keys that it has in the state dict, several where it is tied.
        state: What the optimizer keeps for it; None for a frozen one, or before the first step.
        group: The number of its group.
        place: What to sort it by among those of its group, as they are listed.
        rank: What to sort its state by among all states, as they were saved.
        position: What the optimizer called it; None for one that was made.
    """

    keys: tuple[str, ...]
    state: Mapping[str, Any] | None
    group: int
    place: tuple[int, ...]
    rank: tuple[int, ...]
    position: Position | None = None

    def with_keys(self, keys: Iterable[str]) -> Slot:
        return replace(self, keys=tuple(keys))


def tensors_of(state_dict: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the tensors of a state dict in the tree's order, each by its keys, which are several where it is tied."""
    tied: dict[Hashable, list[str]] = {}
    for key in tree_order([key for key in own_keys(state_dict) if is_tensor(state_dict[key])]):
        tied.setdefault(tensor_identity(state_dict[key]), []).append(key)
    return [tuple(keys) for keys in tied.values()]


def may_be_parameter(
    state_dict: Mapping[str, Any], buffers: Sequence[KeyPattern]
) -> Callable[[tuple[str, ...]], bool]:
    """Return what tells whether a tensor may be a parameter, as far as its keys and its dtype say.

    It may not if it is none, or of integers or booleans, if the author names it among the buffers, or if it is what
    torch's batch normalisation keeps of what it has seen.
    """

    def is_buffer(key: str) -> bool:
        module, _, name = key.rpartition(".")
        counter = f"{module}.num_batches_tracked" if module else "num_batches_tracked"
        is_statistic = name in _BATCH_NORM_BUFFERS and counter in state_dict
        return is_statistic or any(match(pattern, key) is not None for pattern in buffers)

    def tell(keys: tuple[str, ...]) -> bool:
        value = state_dict[keys[0]]
        can_be_trained = is_tensor(value) and (value.is_floating_point() or value.is_complex())
        return bool(can_be_trained) and not any(map(is_buffer, keys))

    return tell


def shapes_in(state: Mapping[str, Any] | None) -> set[tuple[int, ...]]:
    """Return the shapes of the tensors in a state that have any dimension."""
    values = (state or {}).values()
    return {tuple(value.shape) for value in values if is_tensor(value) and value.dim() > 0}


def tensor_identity(value: Any) -> Hashable:
    """Tell which memory a tensor shows and how; what is none, or has no storage of its own, is itself."""
    try:
        return identity(value)
    except (NotImplementedError, RuntimeError):
        return id(value)

"""Copies of the model in a checkpoint, such as its moving average: they go with it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableMapping
from typing import Any

from migrate_ckpt.errors import OptimizerNotFollowed
from migrate_ckpt.operations.paths import Path, show_path
from migrate_ckpt.operations.sections import StateDict, is_tensor, own_keys
from migrate_ckpt.optimizers.states import is_optimizer_state, value_at, walk


def declared_copies(ckpt: Any, paths: Collection[Path]) -> list[StateDict]:
    """Return the state dicts at the paths that an author names; one that is not there is left out.

    Raises:
        OptimizerNotFollowed: What stands there is no state dict.
    """
    found: list[StateDict] = []
    for path in paths:
        value = value_at(ckpt, path)
        if value is None:
            continue
        if not isinstance(value, MutableMapping):
            raise OptimizerNotFollowed(
                f"{show_path(path)} is a {type(value).__name__} and no copy of the model.",
                keys=[show_path(path)],
            )
        found.append(value)
    return found


def recognised_copies(ckpt: Any, model: StateDict, *, but: Collection[int]) -> list[StateDict]:
    """Return each state dict beside the model's that has the same keys, with tensors of the same shapes and dtypes.

    Args:
        ckpt: The checkpoint.
        model: The model's state dict.
        but: Identities of mappings that are not to be taken for copies.
    """
    keys = set(own_keys(model))
    return [
        value
        for _, value in walk(ckpt)
        if value is not model
        and id(value) not in but
        and not is_optimizer_state(value)
        and _is_copy(value, model, keys)
    ]


def _is_copy(value: Mapping[Any, Any], model: StateDict, keys: set[str]) -> bool:
    own = own_keys(value)
    return bool(keys) and set(own) == keys and all(_is_alike(value[k], model[k]) for k in own)


def _is_alike(one: Any, other: Any) -> bool:
    if not is_tensor(one) or not is_tensor(other):
        return False
    return bool(one.shape == other.shape and one.dtype == other.dtype)

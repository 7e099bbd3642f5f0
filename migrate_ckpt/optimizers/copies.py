"""Copies of the model in a checkpoint, such as its moving average: what is done to the model they go with."""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from migrate_ckpt.errors import OptimizerNotFollowed
from migrate_ckpt.operations.paths import Path, show_path
from migrate_ckpt.operations.sections import StateDict, is_tensor, own_keys
from migrate_ckpt.optimizers.states import is_optimizer_state, path_of, value_at, walk

if TYPE_CHECKING:
    from migrate_ckpt.operations.operation import Operation
    from migrate_ckpt.operations.state_dict_operation import StateDictOperation


@dataclass(frozen=True, eq=False)
class Copy:
    """A state dict that goes with the model; one that the author names may lack keys."""

    held: StateDict
    is_declared: bool


class Copies:
    """The copies of one model. They are known by the objects that they are, wherever they come to stand."""

    def __init__(self, model: StateDict | None = None, copies: Sequence[Copy] = ()) -> None:
        self._model = model
        self._copies = copies
        self._done: dict[str, None] = {}

    def operations(
        self, operation: StateDictOperation, ckpt: Any, sections: Sequence[StateDict]
    ) -> list[Operation]:
        """Return what does to the copies what an operation does to the model, if it works on the model."""
        if not any(section is self._model for section in sections):
            return []
        found: list[Operation] = []
        for copy in self._copies:
            path = path_of(ckpt, copy.held)
            if path is None or any(section is copy.held for section in sections):
                continue
            self._done[show_path(path)] = None
            missing = "skip" if copy.is_declared else operation.missing
            found.append(replace(operation, section=(path,), missing=missing))
        return found

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader of the report should know."""
        if not self._done:
            return ()
        shown = ", ".join(self._done)
        return (f"What was done to the model was done to its copies as well: {shown}.",)


def declared_copies(ckpt: Any, paths: Collection[Path]) -> list[Copy]:
    """Return the state dicts at the paths that an author names; one that is not there is left out.

    Raises:
        OptimizerNotFollowed: What stands there is no state dict.
    """
    found: list[Copy] = []
    for path in paths:
        value = value_at(ckpt, path)
        if value is None:
            continue
        if not isinstance(value, MutableMapping):
            raise OptimizerNotFollowed(
                f"{show_path(path)} is a {type(value).__name__} and no copy of the model.",
                keys=[show_path(path)],
            )
        found.append(Copy(value, is_declared=True))
    return found


def recognised_copies(ckpt: Any, model: StateDict, *, but: Sequence[Any]) -> list[Copy]:
    """Return each state dict beside the model's that has the same keys, with tensors of the same shapes and dtypes.

    Args:
        ckpt: The checkpoint.
        model: The model's state dict.
        but: What is not to be taken for a copy.
    """
    left_out = {id(model), *map(id, but)}
    return [
        Copy(value, is_declared=False)
        for _, value in walk(ckpt)
        if id(value) not in left_out and not is_optimizer_state(value) and _is_copy(value, model)
    ]


def _is_copy(value: Mapping[Any, Any], model: StateDict) -> bool:
    keys = own_keys(model)
    return (
        bool(keys)
        and set(own_keys(value)) == set(keys)
        and all(_is_alike(value[key], model[key]) for key in keys)
    )


def _is_alike(one: Any, other: Any) -> bool:
    if not is_tensor(one) or not is_tensor(other):
        return False
    return bool(one.shape == other.shape and one.dtype == other.dtype)

"""Does to an optimizer's states what moves do to the parameters: moments alike, scalars copied, nothing guessed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from migrate_ckpt.errors import OperationError, OptimizerNotFollowed
from migrate_ckpt.operations.moves import Action, Move, list_keys
from migrate_ckpt.operations.sections import is_tensor
from migrate_ckpt.optimizers.declaration import Uncarried
from migrate_ckpt.optimizers.slots import Slot

_SCALARS = (type(None), bool, int, float, str)


@dataclass(frozen=True)
class Carried:
    """The slots after some moves, the keys that were made and may be parameters, and those whose state was given up."""

    slots: tuple[Slot, ...]
    added: tuple[str, ...] = ()
    reset: tuple[str, ...] = ()


def carry(
    slots: Sequence[Slot],
    state_dict: Mapping[str, Any],
    moves: Sequence[Move],
    uncarried: Uncarried,
) -> Carried:
    """Return what moves make of the slots, without changing anything.

    Args:
        slots: The parameters of one optimizer.
        state_dict: The parameters themselves, before the moves.
        moves: What is about to be done to them.
        uncarried: What to do about a state that cannot be carried.

    Raises:
        OptimizerNotFollowed: A state cannot be carried, and may not be given up; or a tied parameter would be two.
    """
    carrying = _Carrying(slots)
    for move in moves:
        carrying.add(move)
    return carrying.finish(state_dict, uncarried)


@dataclass
class _Making:
    """Parameters that are made of others: the moves that say so are several where those are tied."""

    move: Move
    action: Action | None
    sources: list[Slot]
    keys: list[list[str]] = field(default_factory=list)


class _Carrying:
    def __init__(self, slots: Sequence[Slot]) -> None:
        self._slots = slots
        self._owner = {key: slot for slot in slots for key in slot.keys}
        self._kept: dict[Slot, list[str]] = {slot: [] for slot in slots}
        self._made: dict[Any, _Making] = {}
        self._added: list[str] = []
        self._moved: set[str] = set()

    def add(self, move: Move) -> None:
        self._moved.update(move.sources)
        sources = [self._owner.get(key) for key in move.sources]
        action = move.action.for_moments()
        if action is not None and not action.reads:
            for key, slot in zip(move.targets, action(sources), strict=True):
                if slot is not None:
                    self._kept[slot].append(key)
                elif not sources or any(sources):
                    self._added.append(key)
        elif any(sources):
            self._make(move, action, sources)

    def _make(self, move: Move, action: Action | None, sources: Sequence[Slot | None]) -> None:
        known = [slot for slot in sources if slot is not None]
        if len(known) < len(sources):
            absent = [key for key in move.sources if key not in self._owner]
            raise OptimizerNotFollowed(
                f"{list_keys(move.sources)} become one, and the optimizer does not have {list_keys(absent)}.",
                keys=move.sources,
            )
        if len({slot.group for slot in known}) > 1:
            raise OptimizerNotFollowed(
                f"{list_keys(move.sources)} become one, and are in different groups of the optimizer.",
                keys=move.sources,
            )
        same = (action, *map(id, known))
        making = self._made.setdefault(
            same, _Making(move, action, known, [[] for _ in move.targets])
        )
        for keys, target in zip(making.keys, move.targets, strict=True):
            keys.append(target)

    def finish(self, state_dict: Mapping[str, Any], uncarried: Uncarried) -> Carried:
        for slot in self._slots:
            self._kept[slot] += [key for key in slot.keys if key not in self._moved]
        self._refuse_untied()
        slots = [slot.with_keys(keys) for slot, keys in self._kept.items() if keys]
        reset: list[str] = []
        for making in self._made.values():
            try:
                states = _carry_states(making, state_dict)
            except OperationError as error:
                if uncarried == "refuse":
                    raise _refusal(making, error) from error
                states = [None] * len(making.keys)
                reset += [keys[0] for keys in making.keys]
            first = making.sources[0]
            slots += [
                Slot(tuple(keys), state, first.group, (*first.place, part), (*first.rank, part))
                for part, (keys, state) in enumerate(zip(making.keys, states, strict=True))
            ]
        return Carried(tuple(slots), tuple(self._added), tuple(reset))

    def _refuse_untied(self) -> None:
        ways = {slot: bool(keys) for slot, keys in self._kept.items()}
        for making in self._made.values():
            for slot in dict.fromkeys(making.sources):
                if ways[slot]:
                    raise OptimizerNotFollowed(
                        f"{list_keys(slot.keys)} are one parameter, and would become several, of which the optimizer "
                        "has one state. Do the same to each of them.",
                        keys=slot.keys,
                    )
                ways[slot] = True


def _carry_states(making: _Making, state_dict: Mapping[str, Any]) -> list[dict[str, Any] | None]:
    states = [slot.state for slot in making.sources]
    if not any(states):
        return [None] * len(making.keys)
    names = list(states[0] or ())
    if any(set(state or ()) != set(names) for state in states):
        raise OptimizerNotFollowed("the optimizer does not keep the same for each of them")
    shapes = [tuple(state_dict[slot.keys[0]].shape) for slot in making.sources]
    made: list[dict[str, Any]] = [{} for _ in making.keys]
    for name in names:
        values = [(state or {})[name] for state in states]
        for state, value in zip(made, _carry_values(making, name, values, shapes), strict=True):
            state[name] = value
    return list(made)


def _carry_values(
    making: _Making, name: str, values: Sequence[Any], shapes: Sequence[tuple[int, ...]]
) -> Sequence[Any]:
    if all(map(_is_scalar, values)):
        if not _are_equal(values):
            raise OptimizerNotFollowed(f"their {name!r} are not the same")
        return [values[0].clone() if is_tensor(values[0]) else values[0] for _ in making.keys]
    fits = [
        is_tensor(value) and tuple(value.shape) == shape
        for value, shape in zip(values, shapes, strict=True)
    ]
    if not all(fits) or making.action is None:
        raise OptimizerNotFollowed(
            f"{name!r} is not of the parameter's shape, or nobody knows what becomes of it"
        )
    return making.action(values)


def _is_scalar(value: Any) -> bool:
    return value.dim() == 0 if is_tensor(value) else isinstance(value, _SCALARS)


def _are_equal(values: Iterable[Any]) -> bool:
    first, *others = values
    for other in others:
        if type(first) is not type(other):
            return False
        if not is_tensor(first):
            if first != other:
                return False
        # Without bytes nobody can tell; a plan says what the shapes allow.
        elif not first.is_meta and (first.dtype != other.dtype or first.item() != other.item()):
            return False
    return True


def _refusal(making: _Making, error: OperationError) -> OptimizerNotFollowed:
    sources, targets = list_keys(making.move.sources), list_keys(making.move.targets)
    return OptimizerNotFollowed(
        f"The optimizer's state of {sources} cannot be made that of {targets}: {str(error).removesuffix('.')}. "
        'With `optimizer = follow(uncarried="drop")` the optimizer starts afresh for such a parameter.',
        keys=making.move.sources,
    )

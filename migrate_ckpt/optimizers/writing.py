"""Writes what an optimizer has become back into its state: positions, names, and the states under them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from migrate_ckpt.errors import OptimizerNotFollowed
from migrate_ckpt.operations.moves import list_keys, replace_items
from migrate_ckpt.operations.paths import show_path
from migrate_ckpt.optimizers.slots import Slot
from migrate_ckpt.optimizers.states import OptimizerState, Position

_FLAT_OPTIONS = {"history_size", "line_search_fn"}
"""Options of LBFGS, whose state is one vector over all parameters."""


def write_groups(
    optimizer: OptimizerState,
    groups: Sequence[Sequence[Slot]],
    *,
    before: Sequence[Slot],
    prefix: str,
) -> None:
    """Give an optimizer the slots of each group, numbered as torch numbers them.

    Args:
        optimizer: What to change, in place.
        groups: The slots of each group in their order, each with its name as the first of its keys.
        before: Its slots until now.
        prefix: What its names lacked to be keys.

    Raises:
        OptimizerNotFollowed: It has more than states by position, and positions change. Nothing has changed.
    """
    names = _names(groups, prefix)
    positions = _positions(optimizer, names)
    listed = [
        (position, slot)
        for group, slots in zip(positions, groups, strict=True)
        for position, slot in zip(group, slots, strict=True)
    ]
    _refuse_flat(optimizer, listed)
    if not _is_in_order(before):
        listed.sort(key=lambda pair: pair[1].rank)
    states = {position: slot.state for position, slot in listed if slot.state is not None}
    if list(map(id, states.values())) != list(map(id, optimizer.state.values())) or list(
        states
    ) != list(optimizer.state):
        replace_items(optimizer.state, states)
    for number, group in enumerate(optimizer.groups):
        group["params"][:] = positions[number]
        if group.get("param_names"):
            # Names of torch are texts of their own, which a pickle tells from the keys.
            group["param_names"][:] = [name.encode().decode() for name in names[number]]


def _names(groups: Sequence[Sequence[Slot]], prefix: str) -> list[list[str]]:
    """Return the names of parameters; without the prefix that they lacked, if all keys still have it."""
    keys = [[slot.keys[0] for slot in group] for group in groups]
    has_prefix = all(key.startswith(prefix) for group in keys for key in group)
    return [[key[len(prefix) :] for key in group] for group in keys] if has_prefix else keys


def _positions(optimizer: OptimizerState, names: Sequence[Sequence[str]]) -> list[list[Position]]:
    if all(type(position) is str for group in optimizer.positions for position in group):
        return [list(group) for group in names]
    numbers = itertools.count()
    return [[next(numbers) for _ in group] for group in names]


def _refuse_flat(optimizer: OptimizerState, listed: Sequence[tuple[Position, Slot]]) -> None:
    """Refuse other positions where more than the states goes by them."""
    count = sum(map(len, optimizer.positions))
    is_same = len(listed) == count and all(position == slot.position for position, slot in listed)
    path = show_path(optimizer.path)
    if any(group.keys() >= _FLAT_OPTIONS for group in optimizer.groups):
        what = f"{path} is of LBFGS, which keeps one vector over all parameters"
    elif optimizer.masters:
        what = f"{path} has copies of the parameters by position in {list_keys(optimizer.masters)}"
    else:
        return
    if not is_same:
        raise OptimizerNotFollowed(
            f'{what}: it cannot follow. Give it up with `optimizer = follow(states="drop")`.',
            keys=[path],
        )


def _is_in_order(before: Sequence[Slot]) -> bool:
    """Tell whether the states were saved in the order of the positions."""
    listed = sorted(before, key=lambda slot: (slot.group, slot.place))
    ranks = [slot.rank for slot in listed if slot.state is not None]
    return ranks == sorted(ranks)

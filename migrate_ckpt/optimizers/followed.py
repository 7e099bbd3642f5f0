"""One optimizer on its way through a migration: what is known of it, what has been done, and how it is written back."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from migrate_ckpt.errors import NotInvertible, OptimizerNotFollowed
from migrate_ckpt.operations.module_versions import versions_of
from migrate_ckpt.operations.moves import KEEP, Move, list_keys, replace_items
from migrate_ckpt.operations.paths import Path, show_path
from migrate_ckpt.operations.patterns import KeyPattern
from migrate_ckpt.operations.sections import StateDict, own_keys
from migrate_ckpt.optimizers.carrying import carry
from migrate_ckpt.optimizers.declaration import Follow
from migrate_ckpt.optimizers.naming import name_positions
from migrate_ckpt.optimizers.ordering import declared_groups, doubt_of_change, tree_order
from migrate_ckpt.optimizers.slots import Slot, may_be_parameter
from migrate_ckpt.optimizers.states import OptimizerState, Position

_FLAT_OPTIONS = {"history_size", "line_search_fn"}
"""Options of LBFGS, whose state is one vector over all parameters."""


class FollowedOptimizer:
    """The optimizer of one state dict. Nothing of it changes before `finish`."""

    def __init__(self, optimizer: OptimizerState, model: StateDict, follow: Follow) -> None:
        self.optimizer = optimizer
        self.model = model
        self.has_moved = False
        self.reset: tuple[str, ...] = ()
        self._follow = follow
        self._added: tuple[str, ...] = ()
        self._keys_before = list(own_keys(model))
        self._came_from = {key: key for key in self._keys_before}
        self._prefix = ""
        self._doubt: OptimizerNotFollowed | None = None
        self._slots: tuple[Slot, ...] = ()
        try:
            named = name_positions(optimizer, model, follow)
        except OptimizerNotFollowed as error:
            # As long as every position stays where it is nobody needs to know whose it is.
            self._doubt = error
        else:
            self._slots, self._prefix = named.slots, named.prefix
        self._before = self._slots
        self._written: list[list[Slot]] = []

    @property
    def keys(self) -> set[str]:
        """The keys of its parameters, as far as they are known."""
        return {key for slot in self._slots for key in slot.keys}

    def doubt(self, error: OptimizerNotFollowed) -> None:
        """Forget whose the positions are: it is not certain after all."""
        self._doubt, self._slots, self._before = error, (), ()

    def move(self, moves: Sequence[Move]) -> None:
        """Do to the states what is about to be done to the parameters.

        Raises:
            OptimizerNotFollowed: It cannot be done, or not for certain.
        """
        if not moves:
            return
        if self._doubt is not None:
            if any(move.action.for_moments() != KEEP for move in moves):
                raise self._doubt
            self._came_from = _follow_origins(self._came_from, moves)
        else:
            carried = carry(self._slots, self.model, moves, self._follow.uncarried)
            self._slots = carried.slots
            self._added = tuple(_follow_keys(self._added, moves)) + carried.added
            self.reset += carried.reset
        self.has_moved = True

    def finish(self, model: StateDict) -> None:
        """Write the states back; `model` is the state dict as it is now.

        Raises:
            OptimizerNotFollowed: The order of the parameters in the refactored model is not certain. Nothing has
                changed.
        """
        if self._doubt is not None:
            self._finish_unnamed(model)
            return
        absent = [key for slot in self._slots for key in slot.keys if key not in model]
        if absent:
            raise OptimizerNotFollowed(
                f"{list_keys(absent)} went without an operation on keys, which the optimizer could have followed.",
                keys=absent,
            )
        slots = (*self._slots, *self._new_slots(model))
        groups = self._arranged(slots, model)
        if self._follow.order_after is not None:
            self._arrange_keys(model, slots)
        places = {key: place for place, key in enumerate(tree_order(own_keys(model)))}
        self._write([[_named_first(slot, places) for slot in group] for group in groups])

    def undone_by(self, path: Path, section: Path) -> Follow:
        """Return how the optimizer follows the way back, once it is finished and stands at a path."""
        if self._doubt is not None:
            return Follow(path, states="keep")
        if self.reset:
            raise NotInvertible(
                f"The optimizer's state of {list_keys(self.reset)} was given up, and cannot be put back.",
                keys=self.reset,
            )
        before: list[list[Slot]] = [[] for _ in self.optimizer.positions]
        for slot in self._before:
            before[slot.group].append(slot)
        return Follow(
            path,
            section=section,
            order_before=_exactly(self._written),
            order_after=_exactly(before),
            arranges_keys=False,
        )

    def _finish_unnamed(self, model: StateDict) -> None:
        assert self._doubt is not None
        if self._follow.order_after is not None:
            raise self._doubt
        before, after = tree_order(self._keys_before), own_keys(model)
        if after == self._keys_before:
            return
        doubt = doubt_of_change(before, after)
        if doubt is None and [self._came_from.get(key) for key in tree_order(after)] != before:
            doubt = "parameters get other positions"
        if doubt is not None:
            raise OptimizerNotFollowed(
                f"{self._doubt} It must be known, as {doubt}.", keys=self._doubt.keys
            )

    def _new_slots(self, model: Mapping[str, Any]) -> list[Slot]:
        """Return a slot without a state for each parameter that was added."""
        may_be = may_be_parameter(model, self._follow.buffers)
        added = [key for key in self._added if key in model and may_be((key,))]
        if not added:
            return []
        order = self._follow.order_after
        groups = [*map(len, self.optimizer.positions)]
        if order is None or (len(groups) > 1 and len(order) == 1):
            raise OptimizerNotFollowed(
                f"{list_keys(added)} may be a parameter or a buffer. Say with `optimizer = follow(...)` that it is one "
                "of the `buffers`, or where it stands in `order_after`, with a list for each group of the optimizer.",
                keys=added,
            )
        listed = declared_groups(
            order,
            [slot.keys for slot in self._slots] + [(k,) for k in added],
            "order_after",
            names_all=False,
        )
        last = len(self.optimizer.state)
        return [
            Slot((key,), None, group, (groups[group], place), (last, place))
            for place, key in enumerate(added)
            for group, members in enumerate(listed)
            if (key,) in members
        ]

    def _arranged(self, slots: Sequence[Slot], model: Mapping[str, Any]) -> list[list[Slot]]:
        """Return the slots of each group in the order of the refactored model."""
        groups: list[list[Slot]] = [[] for _ in self.optimizer.positions]
        for slot in sorted(slots, key=lambda slot: slot.place):
            groups[slot.group].append(slot)
        if self._follow.order_after is not None:
            return self._as_declared(groups)
        if own_keys(model) == self._keys_before:
            return groups
        before = _first_keys(self._keys_before, self._before)
        meant = {key for slot in slots for key in slot.keys}
        doubt = doubt_of_change(before, [key for key in own_keys(model) if key in meant])
        if doubt is not None:
            raise self._unordered(doubt)
        places = {key: place for place, key in enumerate(tree_order(own_keys(model)))}
        before_places = {key: place for place, key in enumerate(tree_order(self._keys_before))}
        return [
            self._sorted(group, places, number, before_places)
            for number, group in enumerate(groups)
        ]

    def _sorted(
        self,
        group: list[Slot],
        places: Mapping[str, int],
        number: int,
        before: Mapping[str, int],
    ) -> list[Slot]:
        """Return a group in the model's order, if it was in the model's order before."""
        were = [_place(slot, before) for slot in self._before if slot.group == number]
        ordered = sorted(group, key=lambda slot: _place(slot, places))
        if were == sorted(were) or ordered == group:
            return ordered
        if _same_relative([slot for slot in self._before if slot.group == number], ordered, before):
            return group
        raise self._unordered(
            f"group {number} of the optimizer was not in the model's order before"
        )

    def _arrange_keys(self, model: StateDict, slots: Sequence[Slot]) -> None:
        """Let the keys of the state dict stand in the declared order, for whoever reads it off them next."""
        order = self._follow.order_after
        if order is None or len(order) > 1 or not self._follow.arranges_keys:
            return
        [listed] = declared_groups(
            order, [slot.keys for slot in slots], "order_after", names_all=True
        )
        known = iter([key for keys in listed for key in keys])
        ordered = {key for keys in listed for key in keys}
        keys = [next(known) if key in ordered else key for key in model]
        replace_items(model, {key: model[key] for key in keys})
        _arrange_versions(model)

    def _as_declared(self, groups: list[list[Slot]]) -> list[list[Slot]]:
        order = self._follow.order_after
        assert order is not None
        slots = {slot.keys: slot for group in groups for slot in group}
        listed = declared_groups(order, list(slots), "order_after", names_all=True)
        if len(listed) == 1:
            return [[slots[k] for k in listed[0] if slots[k] in group] for group in groups]
        declared = [[slots[keys] for keys in group] for group in listed]
        if [set(map(id, group)) for group in declared] != [set(map(id, g)) for g in groups]:
            raise OptimizerNotFollowed(
                f"order_after does not have the groups of {show_path(self.optimizer.path)}: a parameter stays in its "
                "group."
            )
        return declared

    def _unordered(self, doubt: str) -> OptimizerNotFollowed:
        return OptimizerNotFollowed(
            f"The order of the parameters in the refactored model is not certain: {doubt}. Say it with "
            "`optimizer = follow(order_after=[...])`: the modules or parameters in the order of `model.parameters()`.",
            keys=[show_path(self.optimizer.path)],
        )

    def _write(self, groups: Sequence[Sequence[Slot]]) -> None:
        self._written = [list(group) for group in groups]
        optimizer = self.optimizer
        names = [[self._name(slot) for slot in group] for group in groups]
        are_names = all(type(p) is str for group in optimizer.positions for p in group)
        numbers = itertools.count()
        positions: list[list[Position]] = [
            [name if are_names else next(numbers) for name in group] for group in names
        ]
        listed = [
            (position, slot)
            for group, slots in zip(positions, groups, strict=True)
            for position, slot in zip(group, slots, strict=True)
        ]
        if self._refuses_flat(listed):
            raise OptimizerNotFollowed(
                f"{show_path(optimizer.path)} is of LBFGS, which keeps one vector over all parameters: it cannot be "
                'carried to others. Give it up with `optimizer = follow(states="drop")`.',
                keys=[show_path(optimizer.path)],
            )
        before = sorted(self._before, key=lambda slot: (slot.group, slot.place))
        if [slot.rank for slot in before if slot.state is not None] != sorted(
            slot.rank for slot in before if slot.state is not None
        ):
            listed.sort(key=lambda pair: pair[1].rank)
        states = {position: slot.state for position, slot in listed if slot.state is not None}
        if list(optimizer.state) != list(states) or any(
            optimizer.state[position] is not state for position, state in states.items()
        ):
            replace_items(optimizer.state, states)
        for group, group_positions, group_names in zip(
            optimizer.groups, positions, names, strict=True
        ):
            group["params"][:] = group_positions
            if group.get("param_names"):
                # Names of torch are texts of their own, which a pickle tells from the keys.
                group["param_names"][:] = [name.encode().decode() for name in group_names]

    def _refuses_flat(self, listed: Sequence[tuple[Position, Slot]]) -> bool:
        is_flat = any(group.keys() >= _FLAT_OPTIONS for group in self.optimizer.groups)
        return is_flat and [position for position, _ in listed] != [
            slot.position for _, slot in listed
        ]

    def _name(self, slot: Slot) -> str:
        """Return a parameter's name; without the prefix that the names lacked, if all keys still have it."""
        key = slot.keys[0]
        has_prefix = all(s.keys[0].startswith(self._prefix) for s in self._slots)
        return key[len(self._prefix) :] if has_prefix else key


def _follow_keys(keys: Sequence[str], moves: Sequence[Move]) -> list[str]:
    """Return what keys that are no parameters of the optimizer yet have become."""
    targets = {key: move.targets for move in moves for key in move.sources}
    return [new for key in keys for new in targets.get(key, (key,))]


def _first_keys(keys: Sequence[str], slots: Sequence[Slot]) -> list[str]:
    meant = {key for slot in slots for key in slot.keys}
    return tree_order([key for key in keys if key in meant])


def _place(slot: Slot, places: Mapping[str, int]) -> int:
    return min(places[key] for key in slot.keys)


def _named_first(slot: Slot, places: Mapping[str, int]) -> Slot:
    """Let a tied parameter have the first of its keys in front, which is its name for torch."""
    return replace(slot, keys=tuple(sorted(slot.keys, key=places.__getitem__)))


def _same_relative(before: Sequence[Slot], after: Sequence[Slot], model: Mapping[str, int]) -> bool:
    """Tell whether the model's order of a group is what it was, each part standing where its whole stood."""
    by_model = sorted(before, key=lambda slot: _place(slot, model))
    rank = {slot.place[0]: number for number, slot in enumerate(by_model)}
    ranks = [(rank.get(slot.place[0], len(rank)), slot.place[1:]) for slot in after]
    return ranks == sorted(ranks)


def _arrange_versions(model: StateDict) -> None:
    """Bring the modules in `_metadata` into the order of the keys; one without keys stays behind the one before it."""
    versions = versions_of(model)
    if versions is None:
        return
    first: dict[str, int] = {}
    for place, key in enumerate(tree_order(own_keys(model))):
        above = key.split(".")[:-1]
        for depth in range(len(above) + 1):
            first.setdefault(".".join(above[:depth]), place)
    ranks, rank = {}, -1
    for module in versions:
        rank = first.get(module, rank) if type(module) is str else rank
        ranks[module] = rank
    replace_items(
        versions, {module: versions[module] for module in sorted(ranks, key=ranks.__getitem__)}
    )


def _follow_origins(came_from: Mapping[str, str], moves: Sequence[Move]) -> dict[str, str]:
    """Return where each key came from, after moves that keep values as they are."""
    new = {move.targets[0]: came_from[move.sources[0]] for move in moves}
    gone = {move.sources[0] for move in moves}
    return {key: old for key, old in came_from.items() if key not in gone} | new


def _exactly(groups: Sequence[Sequence[Slot]]) -> tuple[tuple[KeyPattern, ...], ...]:
    return tuple(tuple(re.compile(re.escape(slot.keys[0])) for slot in group) for group in groups)

"""One optimizer on its way through a migration: what is known of it, and what has been done to its parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from migrate_ckpt.errors import NotInvertible, OptimizerNotFollowed
from migrate_ckpt.operations.moves import Move, list_keys
from migrate_ckpt.operations.paths import Path
from migrate_ckpt.operations.patterns import KeyPattern
from migrate_ckpt.operations.sections import StateDict, own_keys
from migrate_ckpt.optimizers.arranging import (
    Then,
    arrange,
    arrange_as_declared,
    arrange_keys,
    in_groups,
    named_first,
)
from migrate_ckpt.optimizers.carrying import carry
from migrate_ckpt.optimizers.declaration import Follow
from migrate_ckpt.optimizers.naming import name_positions
from migrate_ckpt.optimizers.ordering import declared_groups, doubt_of_change, tree_order
from migrate_ckpt.optimizers.slots import Slot, may_be_parameter
from migrate_ckpt.optimizers.states import OptimizerState
from migrate_ckpt.optimizers.writing import write_groups


class FollowedOptimizer:
    """The optimizer of one state dict. Nothing of it changes before `finish`."""

    def __init__(self, optimizer: OptimizerState, model: StateDict, follow: Follow) -> None:
        self.optimizer = optimizer
        self.model = model
        # A declared order is one, whether any key moves or not.
        self.has_moved = follow.order_after is not None
        self.reset: tuple[str, ...] = ()
        self._follow = follow
        self._added: tuple[str, ...] = ()
        self._slots: tuple[Slot, ...] = ()
        self._written: list[list[Slot]] = []
        self._prefix = ""
        self._doubt: OptimizerNotFollowed | None = None
        try:
            named = name_positions(optimizer, model, follow)
        except OptimizerNotFollowed as error:
            # As long as every position stays where it is nobody needs to know whose it is.
            self._doubt = error
        else:
            self._slots, self._prefix = named.slots, named.prefix
        self._then = Then(self._slots, tuple(own_keys(model)))
        self._came_from = {key: key for key in self._then.keys}

    @property
    def keys(self) -> set[str]:
        """The keys of its parameters, as far as they are known."""
        return {key for slot in self._slots for key in slot.keys}

    def doubt(self, error: OptimizerNotFollowed) -> None:
        """Forget whose the positions are: it is not certain after all."""
        self._doubt, self._slots = error, ()

    def move(self, moves: Sequence[Move]) -> None:
        """Do to the states what is about to be done to the parameters.

        Raises:
            OptimizerNotFollowed: It cannot be done, or not for certain.
        """
        if not moves:
            return
        if self._doubt is None:
            carried = carry(self._slots, self.model, moves, self._follow.uncarried)
            self._slots = carried.slots
            self._added = (*_targets(self._added, moves), *carried.added)
            self.reset += carried.reset
        else:
            self._trace(moves, self._doubt)
        self.has_moved = True

    def finish(self, model: StateDict) -> None:
        """Write the states back; `model` is the state dict as it is now.

        Raises:
            OptimizerNotFollowed: The order of the parameters in the refactored model is not certain. Nothing has
                changed.
        """
        if self._doubt is not None:
            self._refuse_renumbering(self._doubt, model)
            return
        absent = [key for slot in self._slots for key in slot.keys if key not in model]
        if absent:
            raise OptimizerNotFollowed(
                f"{list_keys(absent)} went without an operation on keys, which the optimizer could have followed.",
                keys=absent,
            )
        order, count = self._follow.order_after, len(self.optimizer.groups)
        slots = (*self._slots, *self._new_slots(model))
        if order is None:
            groups = arrange(slots, own_keys(model), self._then, count)
        else:
            groups = arrange_as_declared(order, slots, count)
            if self._follow.arranges_keys:
                arrange_keys(model, order, slots)
        self._written = [named_first(group, own_keys(model)) for group in groups]
        write_groups(self.optimizer, self._written, before=self._then.slots, prefix=self._prefix)

    def undone_by(self, path: Path, section: Path) -> Follow:
        """Return how the optimizer follows the way back, once it is finished and stands at a path.

        Raises:
            NotInvertible: A state was given up.
        """
        if self._doubt is not None:
            return Follow(path, states="keep")
        if self.reset:
            raise NotInvertible(
                f"The optimizer's state of {list_keys(self.reset)} was given up, and cannot be put back.",
                keys=self.reset,
            )
        return Follow(
            path,
            section=section,
            order_before=_exactly(self._written),
            order_after=_exactly(in_groups(self._then.slots, len(self.optimizer.groups))),
            arranges_keys=False,
        )

    def _trace(self, moves: Sequence[Move], doubt: OptimizerNotFollowed) -> None:
        """Note where keys come from, as long as no parameter is given up or made into others.

        Names stand in for the states that nobody can tell.
        """
        may_be = may_be_parameter(self.model, self._follow.buffers)
        targets: dict[str, str] = {}
        added: list[str] = []
        for move in moves:
            action = move.action.for_moments()
            is_kept = action is not None and not action.reads
            origins = list(action(move.sources)) if action is not None and is_kept else []
            if any(may_be((key,)) for key in move.sources if key not in origins):
                raise doubt
            kept = dict(zip(move.targets, origins, strict=False))
            targets |= {new: old for new, old in kept.items() if old is not None}
            added += [new for new, old in kept.items() if old is None]
        self._added = (*_targets(self._added, moves), *added)
        gone = {key for move in moves for key in move.sources}
        new = {key: self._came_from[old] for key, old in targets.items() if old in self._came_from}
        self._came_from = {k: o for k, o in self._came_from.items() if k not in gone} | new

    def _refuse_renumbering(self, doubt: OptimizerNotFollowed, model: StateDict) -> None:
        """Refuse what would give a parameter another position, as nobody knows which have one."""
        may_be = may_be_parameter(model, self._follow.buffers)
        is_added = any(key in model and may_be((key,)) for key in self._added)
        if self._follow.order_after is not None or is_added:
            raise doubt
        if all(key == old for key, old in self._came_from.items()):
            return
        left = set(self._came_from.values())
        before = [key for key in tree_order(self._then.keys) if key in left]
        after = [key for key in own_keys(model) if key in self._came_from]
        why = doubt_of_change(before, after)
        if why is None and [self._came_from[key] for key in tree_order(after)] != before:
            why = "parameters get other positions"
        if why is not None:
            raise OptimizerNotFollowed(f"{doubt} It must be known, as {why}.", keys=doubt.keys)

    def _new_slots(self, model: Mapping[str, Any]) -> list[Slot]:
        """Return a slot without a state for each parameter that was added."""
        may_be = may_be_parameter(model, self._follow.buffers)
        added = [key for key in self._added if key in model and may_be((key,))]
        if not added:
            return []
        order, positions = self._follow.order_after, self.optimizer.positions
        if order is None or len(order) != len(positions):
            raise OptimizerNotFollowed(
                f"{list_keys(added)} may be a parameter or a buffer. Say with `optimizer = follow(...)` that it is one "
                "of the `buffers`, or where it stands in `order_after`, with a list for each group of the optimizer.",
                keys=added,
            )
        parameters = [slot.keys for slot in self._slots] + [(key,) for key in added]
        listed = declared_groups(order, parameters, "order_after", names_all=True)
        return [
            Slot((key,), None, group, (len(positions[group]), place), (len(parameters), place))
            for place, key in enumerate(added)
            for group, members in enumerate(listed)
            if (key,) in members
        ]


def _targets(keys: Sequence[str], moves: Sequence[Move]) -> list[str]:
    """Return what has become of keys that are no parameters of the optimizer yet."""
    targets = {key: move.targets for move in moves for key in move.sources}
    return [new for key in keys for new in targets.get(key, (key,))]


def _exactly(groups: Sequence[Sequence[Slot]]) -> tuple[tuple[KeyPattern, ...], ...]:
    return tuple(tuple(re.compile(re.escape(slot.keys[0])) for slot in group) for group in groups)

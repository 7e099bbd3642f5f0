"""Follows one migration of one checkpoint: its operations one by one, or its function by what it declares."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from migrate_ckpt.errors import NotInvertible, OperationError, OptimizerNotFollowed
from migrate_ckpt.migration import CkptType
from migrate_ckpt.operations.moves import list_keys, replace_items
from migrate_ckpt.operations.paths import Path, show_path
from migrate_ckpt.operations.renaming import Rename
from migrate_ckpt.operations.sections import StateDict, find_sections, own_keys
from migrate_ckpt.operations.state_dict_operation import StateDictOperation
from migrate_ckpt.optimizers.copies import declared_copies, recognised_copies
from migrate_ckpt.optimizers.declaration import Follow
from migrate_ckpt.optimizers.followed import FollowedOptimizer
from migrate_ckpt.optimizers.slots import tensors_of
from migrate_ckpt.optimizers.states import (
    OptimizerState,
    is_optimizer_state,
    path_of,
    remove_optimizers,
    value_at,
)

if TYPE_CHECKING:
    from migrate_ckpt.operations.operation import Operation
    from migrate_ckpt.optimizers.rules import OptimizerRules


@dataclass(frozen=True)
class Outcome:
    """What came of the optimizers in one migration; `is_followed` is None where there was nothing to follow."""

    is_followed: bool | None = None
    warnings: tuple[str, ...] = ()


class Following(ABC):
    """What runs beside one migration of one checkpoint."""

    def __init__(
        self, rules: OptimizerRules, optimizers: Sequence[tuple[OptimizerState, Follow]]
    ) -> None:
        self._rules = rules
        self._dropped = [o for o, follow in optimizers if follow.states == "drop"]
        self._carried = [(o, follow) for o, follow in optimizers if follow.states == "carry"]

    def apply(self, operation: Operation, ckpt: CkptType) -> CkptType:
        """Apply one operation; the optimizers keep what it means for them until the end."""
        return operation(ckpt)

    @abstractmethod
    def finish(self, ckpt: CkptType) -> Outcome:
        """Write into the migrated checkpoint what the optimizers have become.

        Raises:
            OptimizerNotFollowed: What they become is not certain.
        """

    def _drop(self, ckpt: CkptType) -> tuple[str, ...]:
        paths = [path_of(ckpt, optimizer.held) for optimizer in self._dropped]
        there = [path for path in paths if path is not None]
        remove_optimizers(ckpt, there)
        if not there:
            return ()
        return (
            f"The optimizer was dropped, as the migration says: {', '.join(map(show_path, there))}.",
        )


class FollowingOperations(Following):
    """Follows declared operations, which tell what they do before they do it."""

    def __init__(
        self,
        ckpt: CkptType,
        rules: OptimizerRules,
        optimizers: Sequence[tuple[OptimizerState, Follow]],
        operations: Sequence[Operation],
    ) -> None:
        super().__init__(rules, optimizers)
        self._followed: list[FollowedOptimizer] = []
        self._homeless: list[tuple[OptimizerState, OperationError]] = []
        for optimizer, follow in self._carried:
            try:
                model = _model(ckpt, follow.section)
            except OperationError as error:
                self._homeless.append((optimizer, error))
            else:
                self._followed.append(FollowedOptimizer(optimizer, model, follow))
        _doubt_shared(self._followed)
        self._copies = self._find_copies(ckpt, operations, bool(optimizers))
        self.copied: list[Path] = []

    def apply(self, operation: Operation, ckpt: CkptType) -> CkptType:
        return self.apply_with_inverse(operation, ckpt, None)

    def apply_with_inverse(
        self, operation: Operation, ckpt: CkptType, inverses: list[Operation] | None
    ) -> CkptType:
        """Apply an operation to the model and its copies, and put what undoes it in front of the inverses."""
        applied = [operation, *self._on_copies(operation, ckpt)]
        if isinstance(operation, StateDictOperation):
            self._move(operation, ckpt)
        for each in applied:
            if inverses is not None:
                inverses[:0] = each.inverse(ckpt)
            ckpt = each(ckpt)
        return ckpt

    def finish(self, ckpt: CkptType) -> Outcome:
        moved = [followed for followed in self._followed if followed.has_moved]
        warnings: list[str] = []
        for followed in moved:
            if path_of(ckpt, followed.optimizer.held) is None:
                continue
            followed.finish(followed.model)
            if followed.reset:
                warnings.append(
                    f"The optimizer starts afresh for {list_keys(followed.reset)}, whose state could not be carried."
                )
        if self._copies and self.copied:
            shown = ", ".join(dict.fromkeys(map(show_path, self.copied)))
            warnings.append(f"What was done to the model was done to its copies as well: {shown}.")
        warnings += self._drop(ckpt)
        return Outcome(True if moved else None, tuple(warnings))

    def undone_by(self, ckpt: CkptType) -> tuple[Follow, ...]:
        """Return how the optimizers follow the way back, once this one is finished."""
        if self._dropped:
            raise NotInvertible("The optimizer was dropped, and cannot be put back.")
        back = []
        for followed in self._followed:
            path, section = (
                path_of(ckpt, held) for held in (followed.optimizer.held, followed.model)
            )
            if followed.has_moved and path is not None and section is not None:
                back.append(followed.undone_by(path, section))
        return (*back, Follow(states="keep"))

    def _move(self, operation: StateDictOperation, ckpt: CkptType) -> None:
        for path, moves in operation.section_moves(ckpt):
            [(_, state_dict)] = find_sections(ckpt, (path,))
            if moves and self._homeless:
                optimizer, error = self._homeless[0]
                raise OptimizerNotFollowed(
                    f"Which state dict {show_path(optimizer.path)} optimizes is not certain: {error} In "
                    "`optimizer = follow(section=...)` the author can say it.",
                    keys=[show_path(optimizer.path)],
                )
            for followed in self._followed:
                if followed.model is state_dict:
                    followed.move(moves)

    def _find_copies(
        self, ckpt: CkptType, operations: Sequence[Operation], has_optimizer: bool
    ) -> list[tuple[StateDict, bool]]:
        """Return each copy of the model, and whether the author names it, so that it may lack keys."""
        declared = declared_copies(ckpt, self._rules.copies)
        copies = [(copy, True) for copy in declared]
        if not has_optimizer:
            # Such a file comes out as it did before anybody followed anything.
            return copies
        named = [
            value_at(ckpt, path)
            for operation in operations
            if isinstance(operation, StateDictOperation)
            for path in operation.section or ()
        ]
        but = {*map(id, named), *map(id, declared)}
        try:
            model = _model(ckpt, None)
        except OperationError:
            return copies
        return copies + [(copy, False) for copy in recognised_copies(ckpt, model, but=but)]

    def _on_copies(self, operation: Operation, ckpt: CkptType) -> list[Operation]:
        """Return what does to the copies what an operation does to the model."""
        if not self._copies or not isinstance(operation, StateDictOperation):
            return []
        try:
            model = _model(ckpt, None)
        except OperationError:
            return []
        sections = [find_sections(ckpt, (path,))[0][1] for path, _ in operation.section_moves(ckpt)]
        if not any(section is model for section in sections):
            return []
        paths = [
            (path_of(ckpt, copy), is_declared)
            for copy, is_declared in self._copies
            if not any(section is copy for section in sections)
        ]
        found = [(path, is_declared) for path, is_declared in paths if path is not None]
        self.copied += [path for path, _ in found]
        return [
            replace(
                operation, section=(path,), missing="skip" if is_declared else operation.missing
            )
            for path, is_declared in found
        ]


class FollowingFunction(Following):
    """Follows a function by the renames that its file declares; without them it only sees that it cannot."""

    def __init__(
        self,
        ckpt: CkptType,
        rules: OptimizerRules,
        optimizers: Sequence[tuple[OptimizerState, Follow]],
    ) -> None:
        super().__init__(rules, optimizers)
        self._before = [_facts_of(ckpt, follow.section) for _, follow in self._carried]
        self._followed: list[FollowedOptimizer] = []
        self._paths = [optimizer.path for optimizer, _ in self._carried]
        if rules.renames is not None:
            self._prepare(ckpt, Rename(rules.renames))

    def finish(self, ckpt: CkptType) -> Outcome:
        has_changed = [
            _facts_of(ckpt, follow.section) != before
            for before, (_, follow) in zip(self._before, self._carried, strict=True)
        ]
        if not any(has_changed):
            return Outcome(None, self._drop(ckpt))
        if self._rules.renames is None:
            paths = ", ".join(map(show_path, self._paths))
            sentence = (
                f"optimizer not followed: {paths} may not fit the migrated parameters, as the migration is a function "
                "that does not say what it renames. Say it with `optimizer = follow(renames={...})`, or list "
                "`operations`."
            )
            return Outcome(False, (sentence, *self._drop(ckpt)))
        for followed in self._followed:
            self._finish_one(ckpt, followed)
        return Outcome(True, self._drop(ckpt))

    def _prepare(self, ckpt: CkptType, renames: Rename) -> None:
        self._expected: list[list[str]] = []
        planned = []
        for optimizer, follow in self._carried:
            model = _model(ckpt, follow.section)
            self._followed.append(FollowedOptimizer(optimizer, model, follow))
            planned.append(renames.moves(model))
        _doubt_shared(self._followed)
        for followed, moves in zip(self._followed, planned, strict=True):
            followed.move(moves)
            new = {move.sources[0]: move.targets[0] for move in moves}
            self._expected.append([new.get(key, key) for key in own_keys(followed.model)])

    def _finish_one(self, ckpt: CkptType, followed: FollowedOptimizer) -> None:
        number = self._followed.index(followed)
        optimizer, follow = self._carried[number]
        held = value_at(ckpt, optimizer.path)
        if not is_optimizer_state(held):
            return
        if held is not optimizer.held:
            raise OptimizerNotFollowed(
                f"The migration has put another value at {show_path(optimizer.path)}, and says in `renames` that the "
                'optimizer follows. One that it changes itself is left alone with `follow(states="keep")`.',
                keys=[show_path(optimizer.path)],
            )
        model = _model(ckpt, follow.section)
        expected = self._expected[number]
        wrong = sorted(set(expected) ^ set(own_keys(model)))
        if wrong:
            raise OptimizerNotFollowed(
                f"The migration does not do what its `renames` say: {list_keys(wrong)} is in one of both only.",
                keys=wrong,
            )
        # What is taken out and put in again under another name comes last, which is not meant.
        known, meant = iter(expected), set(expected)
        keys = [next(known) if key in meant else key for key in model]
        replace_items(model, {key: model[key] for key in keys})
        followed.finish(model)


def _doubt_shared(followed: Sequence[FollowedOptimizer]) -> None:
    """Let none of several optimizers have parameters that another one seems to have as well."""
    for one, other in itertools.combinations(followed, 2):
        shared = one.keys & other.keys if one.model is other.model else set()
        if shared:
            paths = [show_path(each.optimizer.path) for each in (one, other)]
            error = OptimizerNotFollowed(
                f"Which state dict {' and '.join(paths)} optimize is not certain: both seem to have "
                f"{list_keys(sorted(shared))}. Say it with `optimizer = [follow({paths[0]!r}, section=...), ...]`.",
                keys=paths,
            )
            one.doubt(error)
            other.doubt(error)


def _model(ckpt: Any, section: Path | None) -> StateDict:
    [(_, model)] = find_sections(ckpt, None if section is None else (section,))
    return model


def _facts_of(ckpt: Any, section: Path | None) -> Hashable:
    """Return what tells whether a function has done something to the parameters: keys, order, ties and shapes."""
    try:
        model = _model(ckpt, section)
    except OperationError:
        return None
    return tuple(own_keys(model)), tuple(
        (keys, tuple(model[keys[0]].shape)) for keys in tensors_of(model)
    )

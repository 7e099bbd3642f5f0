"""Follows declared operations, which tell what they do before they do it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from migrate_ckpt.errors import NotInvertible, OperationError, OptimizerNotFollowed
from migrate_ckpt.migration import CkptType
from migrate_ckpt.operations.moves import list_keys
from migrate_ckpt.operations.paths import show_path
from migrate_ckpt.operations.sections import find_sections
from migrate_ckpt.operations.state_dict_operation import StateDictOperation
from migrate_ckpt.optimizers.copies import Copies
from migrate_ckpt.optimizers.declaration import Follow
from migrate_ckpt.optimizers.followed import FollowedOptimizer
from migrate_ckpt.optimizers.following import Declared, Following, Outcome, doubt_shared, model_at
from migrate_ckpt.optimizers.states import OptimizerState, path_of

if TYPE_CHECKING:
    from migrate_ckpt.operations.operation import Operation


class FollowingOperations(Following):
    """Does to optimizers and copies what each operation does to the model."""

    def __init__(self, ckpt: CkptType, optimizers: Sequence[Declared], copies: Copies) -> None:
        super().__init__(optimizers)
        self._copies = copies
        self._followed: list[FollowedOptimizer] = []
        self._homeless: list[tuple[OptimizerState, OperationError]] = []
        for optimizer, follow in self._carried:
            try:
                model = model_at(ckpt, follow.section)
            except OperationError as error:
                # Nobody asks as long as no key is moved.
                self._homeless.append((optimizer, error))
            else:
                self._followed.append(FollowedOptimizer(optimizer, model, follow))
        doubt_shared(self._followed)

    def apply(self, operation: Operation, ckpt: CkptType) -> CkptType:
        for each in self._prepared(operation, ckpt):
            ckpt = each(ckpt)
        return ckpt

    def apply_undoably(
        self, operation: Operation, ckpt: CkptType
    ) -> tuple[CkptType, list[Operation]]:
        """Apply one operation; gives what undoes it as well, in the order to apply.

        Raises:
            NotInvertible: Nothing does.
        """
        inverses: list[Operation] = []
        for each in self._prepared(operation, ckpt):
            inverses[:0] = each.inverse(ckpt)
            ckpt = each(ckpt)
        return ckpt, inverses

    def finish(self, ckpt: CkptType) -> Outcome:
        moved = [followed for followed in self._followed if followed.has_moved]
        warnings: list[str] = []
        for followed in moved:
            if path_of(ckpt, followed.optimizer.held) is None:
                # An operation has taken it out of the checkpoint.
                continue
            followed.finish(followed.model)
            if followed.reset:
                warnings.append(
                    f"The optimizer starts afresh for {list_keys(followed.reset)}, whose state could not be carried."
                )
        warnings += [*self._copies.warnings, *self._drop(ckpt)]
        return Outcome(True if moved else None, tuple(warnings))

    def undone_by(self, ckpt: CkptType) -> tuple[Follow, ...]:
        """Return how the optimizers follow the way back, once this one is finished.

        Raises:
            NotInvertible: The optimizer, or a state of it, was given up.
        """
        if self._dropped:
            raise NotInvertible("The optimizer was dropped, and cannot be put back.")
        back = []
        for followed in self._followed:
            path = path_of(ckpt, followed.optimizer.held)
            section = path_of(ckpt, followed.model)
            if followed.has_moved and path is not None and section is not None:
                back.append(followed.undone_by(path, section))
        return (*back, Follow(states="keep"))

    def _prepared(self, operation: Operation, ckpt: CkptType) -> list[Operation]:
        """Tell the optimizers of an operation; gives it, and what does the same to the copies."""
        if not isinstance(operation, StateDictOperation):
            return [operation]
        planned = [
            (find_sections(ckpt, (path,))[0][1], moves)
            for path, moves in operation.section_moves(ckpt)
        ]
        on_copies = self._copies.operations(operation, ckpt, [held for held, _ in planned])
        for held, moves in planned:
            if moves:
                self._refuse_homeless(ckpt)
            for followed in self._followed:
                if followed.model is held:
                    followed.move(moves)
        return [operation, *on_copies]

    def _refuse_homeless(self, ckpt: CkptType) -> None:
        """Refuse to move keys where it is not known whether an optimizer is of these."""
        for optimizer, error in self._homeless:
            raise OptimizerNotFollowed(
                f"Which state dict {show_path(optimizer.path)} optimizes is not certain: {error} In "
                "`optimizer = follow(section=...)` the author can say it.",
                keys=[show_path(optimizer.path)],
            )
        for followed in self._followed:
            if path_of(ckpt, followed.model) is None:
                raise OptimizerNotFollowed(
                    f"The state dict that {show_path(followed.optimizer.path)} optimizes was taken apart before. Move "
                    "keys first, or in a migration of its own.",
                    keys=[show_path(followed.optimizer.path)],
                )

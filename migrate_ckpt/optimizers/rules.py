"""What a migration's declarations come to for one checkpoint: who follows, who goes, who stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from migrate_ckpt.errors import NotInvertible, OperationError, OptimizerNotFollowed
from migrate_ckpt.operations.paths import show_path
from migrate_ckpt.operations.renaming import Rename
from migrate_ckpt.operations.reshaping import Concat
from migrate_ckpt.operations.stacking import Stack
from migrate_ckpt.operations.state_dict_operation import StateDictOperation
from migrate_ckpt.operations.values import DropValue
from migrate_ckpt.optimizers.copies import Copies, declared_copies, recognised_copies
from migrate_ckpt.optimizers.declaration import Follow
from migrate_ckpt.optimizers.following import Declared, Following, model_at
from migrate_ckpt.optimizers.following_function import FollowingFunction
from migrate_ckpt.optimizers.following_operations import FollowingOperations
from migrate_ckpt.optimizers.states import find_optimizers, value_at

if TYPE_CHECKING:
    from migrate_ckpt.migration import CkptType
    from migrate_ckpt.operations.operation import Operation


@dataclass(frozen=True)
class OptimizerRules:
    """The declarations of one migration.

    Attributes:
        follows: One without a path holds for every optimizer that no other names.
        recognises_copies: Whether what has the same keys as the model is a copy of it; on the way back the operations
            name the copies themselves.
    """

    follows: tuple[Follow, ...] = (Follow(),)
    recognises_copies: bool = True

    @property
    def renames(self) -> Rename | None:
        """What a function renames, if its file says so."""
        pairs = next((f.renames for f in self.follows if f.renames is not None), None)
        return None if pairs is None else Rename(pairs)

    def declared_inverse(self, operations: Sequence[Operation] | None) -> OptimizerRules:
        """Return the rules of the way back, which is what the declared inverses of operations do, or a function.

        Raises:
            NotInvertible: The migration gives the optimizer up.
        """
        joins = any(isinstance(each, (Concat, Stack)) for each in operations or ())
        return OptimizerRules(tuple(_turned_round(f, joins=joins) for f in self.follows))

    def begin(
        self,
        ckpt: CkptType,
        operations: Sequence[Operation] | None,
        *,
        is_in_step: bool = True,
    ) -> Following | None:
        """Return what follows a migration of a checkpoint; None where nothing does.

        Args:
            ckpt: The checkpoint before the migration.
            operations: What the migration does; None for a function.
            is_in_step: Whether the optimizers have followed all that was done to the parameters in this run.

        Raises:
            OptimizerNotFollowed: The checkpoint has an optimizer, and the migration refuses such a one.
        """
        if operations is not None:
            return self.begin_operations(ckpt, operations, is_in_step=is_in_step)
        optimizers = self._optimizers(ckpt, is_in_step=is_in_step)
        return FollowingFunction(ckpt, optimizers, self.renames) if optimizers else None

    def begin_operations(
        self, ckpt: CkptType, operations: Sequence[Operation], *, is_in_step: bool = True
    ) -> FollowingOperations | None:
        """Do the same as `begin`, for operations."""
        # What is taken out of the checkpoint by the way follows nothing.
        given_up = [each.path for each in operations if isinstance(each, DropValue)]
        optimizers = [
            (optimizer, follow)
            for optimizer, follow in self._optimizers(ckpt, is_in_step=is_in_step)
            if not any(optimizer.path[: len(path)] == path for path in given_up)
        ]
        if not optimizers and not any(follow.copies for follow in self.follows):
            return None
        copies = self._copies(ckpt, operations, has_optimizer=bool(optimizers))
        return FollowingOperations(ckpt, optimizers, copies)

    def _optimizers(self, ckpt: Any, *, is_in_step: bool) -> list[Declared]:
        by_path = {follow.path: replace(follow, infers=is_in_step) for follow in self.follows}
        rest = by_path.get(None, Follow(infers=is_in_step))
        found = [
            (optimizer, by_path.get(optimizer.path, rest))
            for optimizer in find_optimizers(ckpt, [path for path in by_path if path is not None])
        ]
        refused = [show_path(optimizer.path) for optimizer, f in found if f.states == "refuse"]
        unordered = [show_path(o.path) for o, f in found if f.states == "carry" and f.is_unordered]
        if unordered:
            raise OptimizerNotFollowed(
                f"The order in which {', '.join(unordered)} had the parameters before is not certain. Say it with "
                "`optimizer = follow(order_before=[...])`.",
                keys=unordered,
            )
        if refused:
            raise OptimizerNotFollowed(
                f"The migration is for checkpoints without an optimizer, and this one has {', '.join(refused)}.",
                keys=refused,
            )
        return found

    def _copies(self, ckpt: Any, operations: Sequence[Operation], *, has_optimizer: bool) -> Copies:
        sections = [follow.section for follow in self.follows if follow.copies]
        sections += [follow.section for follow in self.follows if follow.path is None]
        try:
            model = model_at(ckpt, next(iter(sections), None))
        except OperationError:
            return Copies()
        copies = declared_copies(ckpt, [path for f in self.follows for path in f.copies])
        # A file without an optimizer comes out as it did before anything followed.
        if has_optimizer and self.recognises_copies:
            named = [
                value_at(ckpt, path)
                for operation in operations
                if isinstance(operation, StateDictOperation)
                for path in operation.section or ()
            ]
            copies += recognised_copies(ckpt, model, but=[*named, *(copy.held for copy in copies)])
        return Copies(model, copies)


def _turned_round(follow: Follow, *, joins: bool) -> Follow:
    """Return how an optimizer follows the way back from a migration that it followed so."""
    if follow.states == "drop":
        raise NotInvertible("the optimizer is dropped by it.")
    # Where many became one nobody sees where they stood; nor what an author has put into another order.
    is_unordered = follow.order_before is None and (joins or follow.order_after is not None)
    renames = follow.renames
    if renames is not None:
        renames = Rename(renames).turned_round()
    return replace(
        follow,
        uncarried="refuse",
        order_before=follow.order_after,
        order_after=follow.order_before,
        renames=renames,
        is_unordered=is_unordered,
    )

"""What a migration's declarations come to for one checkpoint: who follows, who goes, who stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from migrate_ckpt.errors import OptimizerNotFollowed
from migrate_ckpt.operations.paths import Path, show_path
from migrate_ckpt.optimizers.declaration import Follow
from migrate_ckpt.optimizers.states import OptimizerState, find_optimizers

if TYPE_CHECKING:
    from migrate_ckpt.migration import CkptType
    from migrate_ckpt.operations.operation import Operation
    from migrate_ckpt.optimizers.following import Following


@dataclass(frozen=True)
class OptimizerRules:
    """The declarations of one migration; one without a path holds for every optimizer that no other names."""

    follows: tuple[Follow, ...] = (Follow(),)

    @property
    def copies(self) -> tuple[Path, ...]:
        return tuple(path for follow in self.follows for path in follow.copies)

    @property
    def renames(self) -> tuple[tuple[str, str], ...] | None:
        return next((f.renames for f in self.follows if f.renames is not None), None)

    def begin(
        self,
        ckpt: CkptType,
        operations: Sequence[Operation] | None,
        *,
        is_in_step: bool = True,
    ) -> Following | None:
        """Return what follows the migration of a checkpoint; None where nothing does.

        Args:
            ckpt: The checkpoint before the migration.
            operations: What the migration does, if it says so.
            is_in_step: Whether the optimizers have followed all that was done to the parameters in this run.

        Raises:
            OptimizerNotFollowed: The checkpoint has an optimizer, and the migration refuses such a one.
        """
        optimizers = [
            (optimizer, replace(follow, infers=is_in_step)) for optimizer, follow in self.of(ckpt)
        ]
        if not optimizers and not self.copies:
            return None
        refused = [show_path(o.path) for o, follow in optimizers if follow.states == "refuse"]
        if refused:
            raise OptimizerNotFollowed(
                f"The migration is for checkpoints without an optimizer, and this one has {', '.join(refused)}.",
                keys=refused,
            )
        from migrate_ckpt.optimizers.following import FollowingFunction, FollowingOperations

        if operations is None:
            return FollowingFunction(ckpt, self, optimizers)
        return FollowingOperations(ckpt, self, optimizers, operations)

    def of(self, ckpt: Any) -> list[tuple[OptimizerState, Follow]]:
        """Return each optimizer in a checkpoint with the declaration for it."""
        by_path = {follow.path: follow for follow in self.follows}
        paths = [path for path in by_path if path is not None]
        rest = by_path.get(None, Follow())
        return [(o, by_path.get(o.path, rest)) for o in find_optimizers(ckpt, paths)]

"""Applies declared operations in such a way that they can be undone, the optimizer included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from migrate_ckpt.migration import CkptType
from migrate_ckpt.optimizers.following import FollowingOperations
from migrate_ckpt.optimizers.rules import OptimizerRules

if TYPE_CHECKING:
    from migrate_ckpt.operations.operation import Operation


def apply_undoably(
    operations: Sequence[Operation], ckpt: CkptType, rules: OptimizerRules | None = None
) -> tuple[CkptType, tuple[Operation, ...], OptimizerRules]:
    """Apply operations, the optimizers following; gives the operations and rules that undo it, to be applied likewise.

    Raises:
        NotInvertible: Something of what was there before is given up. The checkpoint may be half changed then.
        OperationError: An operation cannot do what it says, or the optimizers cannot follow.
    """
    following = (rules or OptimizerRules()).begin(ckpt, operations)
    inverses: list[Operation] = []
    if not isinstance(following, FollowingOperations):
        for operation in operations:
            inverses[:0] = operation.inverse(ckpt)
            ckpt = operation(ckpt)
        return ckpt, tuple(inverses), OptimizerRules()
    for operation in operations:
        ckpt = following.apply_with_inverse(operation, ckpt, inverses)
    following.finish(ckpt)
    return ckpt, tuple(inverses), OptimizerRules(following.undone_by(ckpt))

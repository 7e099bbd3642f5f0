"""Applies declared operations in such a way that they can be undone, the optimizer included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from migrate_ckpt.migration import CkptType
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
    following = (rules or OptimizerRules()).begin_operations(ckpt, operations)
    inverses: list[Operation] = []
    for operation in operations:
        if following is None:
            inverses[:0] = operation.inverse(ckpt)
            ckpt = operation(ckpt)
        else:
            ckpt, undoing = following.apply_undoably(operation, ckpt)
            inverses[:0] = undoing
    if following is None:
        return ckpt, tuple(inverses), OptimizerRules()
    following.finish(ckpt)
    back = OptimizerRules(following.undone_by(ckpt), recognises_copies=False)
    return ckpt, tuple(inverses), back

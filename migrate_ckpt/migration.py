"""A migration, the checkpoint it changes, and the names of the original library for both."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from migrate_ckpt.operations.operation import Operation
    from migrate_ckpt.operations.requirements import Requirement
    from migrate_ckpt.optimizers.rules import OptimizerRules

CkptType: TypeAlias = MutableMapping[str, Any]
MigrationCallback: TypeAlias = Callable[[CkptType], CkptType]


@dataclass
class Migration:
    """A named function from checkpoint to checkpoint.

    The title and the digest are known for a migration that was read from a file. One that is declared has its
    operations; the callback then applies them. What it requires is checked just before it is applied. The optimizers in
    a checkpoint follow it by its rules; without any they are left alone. `revert` takes it back, if its file has one.
    One that is squashed `replaces` others, by their names.
    """

    name: str
    callback: MigrationCallback
    title: str = ""
    digest: str | None = None
    operations: tuple[Operation, ...] | None = None
    requires: tuple[Requirement, ...] = ()
    optimizer: OptimizerRules | None = None
    revert: MigrationCallback | None = None
    replaces: tuple[str, ...] = ()

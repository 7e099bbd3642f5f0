"""What a migration file declares: operations in place of a function, what it requires, how optimizers follow."""

from __future__ import annotations

import functools
from typing import Any

from migrate_ckpt.errors import InvalidMigrationFile
from migrate_ckpt.migration import CkptType, Migration
from migrate_ckpt.migration_file import MigrationFile
from migrate_ckpt.operations.operation import Operation
from migrate_ckpt.operations.requirements import Requirement
from migrate_ckpt.optimizers.declaration import Follow
from migrate_ckpt.optimizers.rules import OptimizerRules


def declared_migration(
    file: MigrationFile, operations: Any, requires: Any, optimizer: Any = None
) -> Migration:
    """Return the migration of a file, given what it has as `operations`.

    Raises:
        InvalidMigrationFile: That is no list of operations, or an empty one and nothing is said of the optimizer.
    """
    # A class that lists its modules in another order changes nothing but the optimizer.
    is_list = isinstance(operations, (list, tuple)) and (operations or optimizer is not None)
    if not is_list or not all(isinstance(item, Operation) for item in operations):
        raise InvalidMigrationFile(
            f"The `operations` of {file.path.name} must be a list of operations, as in "
            '`operations = [rename("a", "b")]`.',
            path=file.path,
            name=file.name,
        )
    listed = tuple(operations)
    rules = declared_rules(file, optimizer)
    return Migration(
        file.name,
        functools.partial(apply_operations, listed, rules),
        file.title,
        file.digest,
        operations=listed,
        requires=declared_requirements(file, requires),
        optimizer=rules,
    )


def declared_requirements(file: MigrationFile, requires: Any) -> tuple[Requirement, ...]:
    """Return what a file has as `requires`: one requirement or a list of them.

    Raises:
        InvalidMigrationFile: It is something else.
    """
    if requires is None:
        return ()
    listed = tuple(requires) if isinstance(requires, (list, tuple)) else (requires,)
    if not all(isinstance(item, Requirement) for item in listed):
        raise InvalidMigrationFile(
            f"The `requires` of {file.path.name} must be a requirement or a list of them, as in "
            '`requires = requires_key("encoder.weight")`.',
            path=file.path,
            name=file.name,
        )
    return listed


def declared_rules(file: MigrationFile, optimizer: Any) -> OptimizerRules:
    """Return what a file has as `optimizer`: one `follow(...)`, a list of them, or None for none.

    Raises:
        InvalidMigrationFile: It is something else, two are for one optimizer, or operations have renames beside them.
    """
    if optimizer is None:
        return OptimizerRules()
    listed = tuple(optimizer) if isinstance(optimizer, (list, tuple)) else (optimizer,)
    what = None
    if not all(isinstance(item, Follow) for item in listed):
        what = (
            'must be a `follow(...)` or a list of them, as in `optimizer = follow(states="drop")`'
        )
    elif len({item.path for item in listed}) < len(listed):
        what = "has two declarations for one optimizer: give each a path"
    elif file.is_declared and any(item.renames is not None for item in listed):
        what = (
            "has `renames`, which are for a file with `handle`: its operations say what they rename"
        )
    if what is not None:
        raise InvalidMigrationFile(
            f"The `optimizer` of {file.path.name} {what}.", path=file.path, name=file.name
        )
    return OptimizerRules(listed)


def apply_operations(
    operations: tuple[Operation, ...], rules: OptimizerRules, ckpt: CkptType
) -> CkptType:
    """Apply operations one after the other, the optimizers following."""
    following = rules.begin(ckpt, operations)
    if following is None:
        for operation in operations:
            ckpt = operation(ckpt)
        return ckpt
    for operation in operations:
        ckpt = following.apply(operation, ckpt)
    following.finish(ckpt)
    return ckpt

"""Follows one migration of one checkpoint, from before its first step to after its last."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from migrate_ckpt.errors import OptimizerNotFollowed
from migrate_ckpt.migration import CkptType
from migrate_ckpt.operations.moves import list_keys
from migrate_ckpt.operations.paths import Path, show_path
from migrate_ckpt.operations.sections import StateDict, find_sections
from migrate_ckpt.optimizers.declaration import Follow
from migrate_ckpt.optimizers.followed import FollowedOptimizer
from migrate_ckpt.optimizers.states import OptimizerState, path_of, remove_optimizers

if TYPE_CHECKING:
    from migrate_ckpt.operations.operation import Operation

Declared: TypeAlias = tuple[OptimizerState, Follow]
"""An optimizer, and what its migration says of it."""


@dataclass(frozen=True)
class Outcome:
    """What came of the optimizers in one migration; `is_followed` is None where there was nothing to follow."""

    is_followed: bool | None = None
    warnings: tuple[str, ...] = ()


class Following(ABC):
    """What runs beside one migration of one checkpoint."""

    def __init__(self, optimizers: Sequence[Declared]) -> None:
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
        """Take out the optimizers that the migration gives up, and say so."""
        paths = [path_of(ckpt, optimizer.held) for optimizer in self._dropped]
        there = [path for path in paths if path is not None]
        remove_optimizers(ckpt, there)
        shown = ", ".join(map(show_path, there))
        return (f"The optimizer was dropped, as the migration says: {shown}.",) if there else ()


def model_at(ckpt: Any, section: Path | None) -> StateDict:
    """Return the state dict at a path, or with None the model's.

    Raises:
        SectionNotFound: It is not there, or not the only one.
    """
    [(_, model)] = find_sections(ckpt, None if section is None else (section,))
    return model


def doubt_shared(followed: Sequence[FollowedOptimizer]) -> None:
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

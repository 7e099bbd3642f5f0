"""What can be done with a sharded checkpoint, of whichever kind."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, Protocol

from migrate_ckpt.errors import UnwritableCheckpoint
from migrate_ckpt.inspection import Inspection
from migrate_ckpt.plan import Plan
from migrate_ckpt.sharded.new_set import NewSet

if TYPE_CHECKING:
    from migrate_ckpt.file_run import RunOptions
    from migrate_ckpt.folder import MigrationSet
    from migrate_ckpt.formats.container import Container
    from migrate_ckpt.runner import OnStep


class Kind(Protocol):
    """A kind of sharded checkpoint."""

    def names(self) -> frozenset[str]:
        """Return the names of its files, but for the one that names them."""

    def plan(self, migrations: MigrationSet, options: RunOptions) -> Plan:
        """Say what a set would do."""

    def inspect(self) -> Inspection:
        """Say what is in it."""

    def run(
        self,
        migrations: MigrationSet,
        options: RunOptions,
        *,
        in_place: bool,
        taken: Collection[str],
        on_step: OnStep | None,
    ) -> NewSet:
        """Run a set, and lay out the files of the result; those that are written have none of the taken names."""

    def read(self, builder_of: Callable[[Container], Any]) -> Any:
        """Return the checkpoint, for those who try migrations out (see `preview.Readable`)."""

    def written(self) -> set[str]:
        """Return the keys of storages that were written to in memory, as far as they are known."""


def refuse_other_format(options: RunOptions) -> None:
    """Refuse to convert a sharded checkpoint.

    Raises:
        UnwritableCheckpoint: Another format is asked for.
    """
    if options.format is not None:
        raise UnwritableCheckpoint(
            "a sharded checkpoint keeps its format: leave out the other one", where="format"
        )

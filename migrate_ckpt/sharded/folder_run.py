"""Runs a set of migrations on a sharded checkpoint in a folder, into another folder or in place."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from migrate_ckpt.errors import TargetExists
from migrate_ckpt.report import Report
from migrate_ckpt.sharded.distributed_metadata import (
    METADATA_NAME,
    is_distributed,
    named_by_metadata,
)
from migrate_ckpt.sharded.files import FolderFiles
from migrate_ckpt.sharded.index_file import SUFFIX, named_by_index
from migrate_ckpt.sharded.kind import Kind, refuse_other_format
from migrate_ckpt.sharded.leftovers import find_leftovers
from migrate_ckpt.sharded.new_set import remove, write_set

if TYPE_CHECKING:
    from migrate_ckpt.file_run import RunOptions
    from migrate_ckpt.folder import MigrationSet
    from migrate_ckpt.runner import OnStep


@dataclass(frozen=True, slots=True)
class ShardedFolder:
    """A sharded checkpoint in a folder.

    Attributes:
        folder: The folder.
        main_name: The name of the file that names the others.
        kind: What can be done with it.
    """

    folder: Path
    main_name: str
    kind: Kind

    def migrate(
        self,
        target: Path,
        migrations: MigrationSet,
        options: RunOptions,
        *,
        force: bool,
        on_step: OnStep | None,
    ) -> Report:
        """Migrate it into another folder, or in place.

        In another folder files keep their names, and those that did not change are copied by the kernel. In place only
        those that change are written. Where there is a set already, in place or with force, they get new names, and the
        old ones go once the file that names the others is replaced: whoever is ended in between has left the old set
        whole. A run in place also takes away what one has left that was ended after that.

        Args:
            target: The folder of the new set, or the path of its index.
            migrations: The migrations.
            options: As for one file; another format is refused.
            force: Whether a set, or a file of one, that is in the target's place is replaced.
            on_step: As for `migrate_file`.

        Raises:
            TargetExists: Another set, or a file of that name, is in the target's place, and `force` is not set.
            UnwritableCheckpoint: The result is not what such a checkpoint can hold, or another format was asked for.
            And what `migrate_file` raises. Then the old set is as it was, and there is no new one.
        """
        refuse_other_format(options)
        folder = target.parent if target.name.endswith(SUFFIX) else target
        in_place = folder.exists() and folder.samefile(self.folder)
        replaces = in_place or force
        if not replaces:
            _refuse_existing(folder, [self.main_name])
        named = self._named(folder, in_place=in_place) if replaces else {}
        taken = frozenset().union(*named.values())
        old_names = named.pop(self.main_name, frozenset()).difference(named, *named.values())
        is_index = in_place and self.main_name.endswith(SUFFIX)
        left = find_leftovers(folder, self.main_name, taken) if is_index else set()
        with self.kind.run(
            migrations, options, in_place=in_place, taken=taken, on_step=on_step
        ) as new:
            if not replaces:
                _refuse_existing(folder, [file.name for file in new.files])
            if not in_place or new.report.plan.has_work:
                write_set(new, folder, old_names | left, is_in_place=in_place)
            else:
                remove(folder, left)
            return new.report

    def _named(self, folder: Path, *, in_place: bool) -> dict[str, frozenset[str]]:
        """Return what each file of a folder names that names the files of a set."""
        if not folder.is_dir():
            return {}
        files = FolderFiles(folder)
        indexes = [name for name in files.sizes() if name.endswith(SUFFIX)]
        named = {name: named_by_index(files, name) for name in indexes}
        if in_place:
            # It is read once: distributed metadata takes seconds.
            named[self.main_name] = self.kind.names()
        if METADATA_NAME not in named and is_distributed(files):
            named[METADATA_NAME] = named_by_metadata(files)
        return named


def _refuse_existing(folder: Path, names: Iterable[str]) -> None:
    """Refuse to replace files, or links wherever they lead."""
    for path in [folder / name for name in names]:
        if os.path.lexists(path):
            raise TargetExists(
                f"{path} exists already. Choose another target, or replace it with force.",
                path=path,
            )

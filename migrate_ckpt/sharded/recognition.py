"""Tells whether a path or a tar means a checkpoint in several files, and what can be done with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from migrate_ckpt.errors import TargetExists, UnwritableCheckpoint
from migrate_ckpt.inspection import Inspection
from migrate_ckpt.plan import Plan
from migrate_ckpt.report import Report
from migrate_ckpt.sharded.distributed_metadata import (
    METADATA_NAME,
    is_distributed,
    named_by_metadata,
)
from migrate_ckpt.sharded.distributed_run import DistributedKind
from migrate_ckpt.sharded.files import Files, FolderFiles, TarFiles, is_tar
from migrate_ckpt.sharded.index_file import SUFFIX, find_index, named_by_index
from migrate_ckpt.sharded.leftovers import find_leftovers
from migrate_ckpt.sharded.new_set import NewSet, remove, write_in_place, write_into_folder
from migrate_ckpt.sharded.sharded_run import ShardedKind

if TYPE_CHECKING:
    from migrate_ckpt.file_run import RunOptions
    from migrate_ckpt.folder import MigrationSet
    from migrate_ckpt.formats.container import Container
    from migrate_ckpt.formats.source import FileSource
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
            if not in_place:
                write_into_folder(new, folder, old_names)
            elif new.report.plan.has_work:
                write_in_place(new, folder, old_names | left)
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


def sharded_folder(path: Path) -> ShardedFolder | None:
    """Return the sharded checkpoint that a path means: an index, or a folder with one, or a distributed one."""
    is_index = path.name.endswith(SUFFIX) and path.is_file()
    if not path.is_dir() and not is_index:
        return None
    folder = path.parent if is_index else path
    found = _kind_of(FolderFiles(folder), path.name if is_index else None)
    return None if found is None else ShardedFolder(folder, *found)


def sharded_tar(source: FileSource) -> tuple[TarFiles, Kind] | None:
    """Return the sharded checkpoint that a tar holds.

    Raises:
        UnreadableCheckpoint: The tar is damaged, or holds more than plain files in one folder.
    """
    if not is_tar(source):
        return None
    files = TarFiles(source)
    found = _kind_of(files, None)
    return None if found is None else (files, found[1])


def _refuse_existing(folder: Path, names: Iterable[str]) -> None:
    """Refuse to replace files, or links wherever they lead."""
    for path in [folder / name for name in names]:
        if os.path.lexists(path):
            raise TargetExists(
                f"{path} exists already. Choose another target, or replace it with force.",
                path=path,
            )


def _kind_of(files: Files, index: str | None) -> tuple[str, Kind] | None:
    if index is None and is_distributed(files):
        return METADATA_NAME, DistributedKind(files)
    name = index or find_index(files)
    return None if name is None else (name, ShardedKind(files, name))


def refuse_other_format(options: RunOptions) -> None:
    """Refuse to convert a sharded checkpoint.

    Raises:
        UnwritableCheckpoint: Another format is asked for.
    """
    if options.format is not None:
        raise UnwritableCheckpoint(
            "a sharded checkpoint keeps its format: leave out the other one", where="format"
        )

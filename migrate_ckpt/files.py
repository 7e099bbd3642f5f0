"""Checkpoints in files: read, plan, migrate, write, look into.

The format is decided by content. A file is written beside its target, flushed and renamed, so there is never half a
file, and source and target may be the same path. A file that is only read may be given as an open descriptor, too.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from migrate_ckpt.changes import MAX_CHANGES
from migrate_ckpt.errors import (
    HistoryError,
    UnreadableCheckpoint,
    UnwritableCheckpoint,
)
from migrate_ckpt.file_run import (
    Run,
    RunKeywords,
    RunOptions,
    as_checkpoint,
    lay_out_new,
    plan_contents,
    read_tensors,
    start_run,
)
from migrate_ckpt.folder import DEFAULT_SET, MigrationSet, as_set
from migrate_ckpt.formats import open_container
from migrate_ckpt.formats.outline_tensors import OutlineTensors
from migrate_ckpt.formats.partial_source import PartialSource, open_partial
from migrate_ckpt.formats.pieces import replace_file
from migrate_ckpt.formats.source import ByteRange, FileSource
from migrate_ckpt.inspection import Inspection
from migrate_ckpt.loader import load_migrations
from migrate_ckpt.migration import CkptType
from migrate_ckpt.plan import Plan
from migrate_ckpt.preview import OfContainer, Readable, preview_plan
from migrate_ckpt.report import Report
from migrate_ckpt.runner import OnStep
from migrate_ckpt.sharded.files import is_tar
from migrate_ckpt.sharded.folder_run import ShardedFolder
from migrate_ckpt.sharded.kind import Kind
from migrate_ckpt.sharded.recognition import sharded_folder, sharded_tar
from migrate_ckpt.sharded.tar_run import start_tar_run
from migrate_ckpt.targets import check_target, is_same_file, refuse_other_bundle
from migrate_ckpt.undo_bundle import bundle_path, write_bundle

if TYPE_CHECKING:
    from typing_extensions import Unpack


def read_checkpoint(path: str | os.PathLike[str]) -> CkptType:
    """Read a checkpoint without importing anything that it names.

    Tensors are mapped: their bytes are read when they are used, and writing to them does not change the file.

    Raises:
        OSError: The file cannot be opened.
        UnreadableCheckpoint: It is no checkpoint that is read here, or it is damaged.
    """
    return as_checkpoint(read_tensors(open_container(FileSource(path))).value)


def write_checkpoint(ckpt: CkptType, path: str | os.PathLike[str]) -> None:
    """Write a checkpoint as torch's zip; an existing file is replaced once the new one is whole.

    Storages that were read from a file and not changed since are copied from there by the kernel.

    Raises:
        OSError: The file cannot be written.
        UnwritableCheckpoint: The checkpoint holds what cannot be pickled.
    """
    pieces, source = lay_out_new(ckpt)
    replace_file(Path(path), pieces, source)


def plan_file(
    path: str | os.PathLike[str] | int,
    migrations: MigrationSet,
    *,
    with_changes: bool = False,
    max_changes: int | None = MAX_CHANGES,
    **options: Unpack[RunKeywords],
) -> Plan:
    """What running a set on a file would do. Loads no torch, runs no migration, reads no tensor.

    With changes each step also says what it would add, remove, change and rename. To know it, the migrations are
    loaded and run in memory; nothing is written. One that fails is no error here: its step says so. Of each step at
    most `max_changes` are kept, and all are counted. The other options are those of `RunOptions`.

    Raises:
        UnreadableCheckpoint: The file is no checkpoint that is read here, or it is damaged.
        RefusedGlobals: It names what is not on the list of what is allowed.
        InvalidHistory, HistoryRefused, UnknownMigration: As `make_plan` says.
        InvalidMigrationFile: With changes, a migration cannot be imported.
    """
    sharded = _sharded_folder(path)
    if sharded is not None:
        return _plan(sharded.kind, migrations, options, with_changes, max_changes)
    with FileSource(path) as source:
        in_tar = sharded_tar(source)
        if in_tar is not None:
            return _plan(in_tar[1], migrations, options, with_changes, max_changes)
        container = open_container(source)
        contents = container.read(OutlineTensors(container))
        plan = plan_contents(contents, migrations, RunOptions(**options))
        return _with_changes(plan, OfContainer(container), migrations, with_changes, max_changes)


def _plan(
    kind: Kind,
    migrations: MigrationSet,
    options: RunKeywords,
    with_changes: bool,
    max_changes: int | None,
) -> Plan:
    """Plan a set for a checkpoint in several files."""
    plan = kind.plan(migrations, RunOptions(**options))
    return _with_changes(plan, kind, migrations, with_changes, max_changes)


def _with_changes(
    plan: Plan,
    readable: Readable,
    migrations: MigrationSet,
    with_changes: bool,
    max_changes: int | None,
) -> Plan:
    """Add the changes to a plan, if they are asked for."""
    if not with_changes or not plan.to_run:
        return plan
    loaded = load_migrations(migrations)
    return preview_plan(
        readable, plan, loaded, max_changes=max_changes, manifest=migrations.manifest
    )


def _sharded_folder(path: str | os.PathLike[str] | int) -> ShardedFolder | None:
    return None if isinstance(path, int) else sharded_folder(Path(path))


def is_migrated(
    path: str | os.PathLike[str],
    migrations: MigrationSet,
    **options: Unpack[RunKeywords],
) -> bool:
    """Whether a file is a checkpoint in the format asked for, and a set has nothing to do in it. Loads no torch.

    Raises:
        OSError: The file cannot be opened.
        UnknownMigration: As `make_plan` says.
    """
    asked = RunOptions(**options)
    sharded = _sharded_folder(path)
    if sharded is not None:
        try:
            return not sharded.kind.plan(migrations, asked).has_work
        except (UnreadableCheckpoint, HistoryError):
            return False
    with FileSource(path) as source:
        try:
            container = open_container(source)
            contents = container.read(OutlineTensors(container))
            plan = plan_contents(contents, migrations, asked)
        except (UnreadableCheckpoint, HistoryError):
            return False
    return not plan.has_work and asked.format in (None, container.format)


def run_file(
    path: str | os.PathLike[str] | int,
    migrations: MigrationSet,
    *,
    present: Iterable[ByteRange] | None = None,
    on_step: OnStep | None = None,
    **options: Unpack[RunKeywords],
) -> Run:
    """Run a set on a file and lay out the result, which nothing is written of yet. The file stays as it is.

    A file that lies elsewhere, as in a bucket, need not be there as a whole: with `present`, the ranges of it that
    are, each an offset and a count, it is migrated from these if that can be done, and the report's `bytes_verified`
    is False. Otherwise `BytesNeeded` has the ranges to fetch before the next try, which may again need more.

    Raises:
        BytesNeeded: More of the file must be there.
        MigrationFailed: A migration raised or returned no checkpoint; carries the report so far.
        UnwritableCheckpoint: What the migrations made cannot be pickled.
        And what `plan_file` raises.
    """
    # Whoever gets the pieces waits for the checksums first, so that all processors are free for them.
    source = FileSource(path) if present is None else open_partial(path, present)
    return _start(source, migrations, on_step, options, threads=2)


def migrate_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    folder: str | os.PathLike[str] | MigrationSet,
    set_name: str = DEFAULT_SET,
    force: bool = False,
    keep_undo: bool = False,
    on_step: OnStep | None = None,
    **options: Unpack[RunKeywords],
) -> Report:
    """Migrate a file with a folder of migrations. Source and target may be the same path.

    Where nothing is pending the target is a copy of the source, and the source itself is not written again. With
    `keep_undo`, what `revert_file` needs is written beside the target before the target is, as `NAME.undo`.

    Raises:
        TargetExists: Another file is in the place of the target or of its undo bundle, and `force` is not set.
        FolderError: The folder of migrations cannot be used.
        And what `run_file` raises. Then there is no target, and the source is as it was.
    """
    sharded = _sharded_folder(source)
    if sharded is not None:
        if keep_undo:
            raise UnwritableCheckpoint(
                "an undo bundle is of one file, and a sharded checkpoint is of several: keep a copy",
                where="undo",
            )
        return sharded.migrate(
            Path(target),
            as_set(folder, set_name),
            RunOptions(**options),
            force=force,
            on_step=on_step,
        )
    path = check_target(source, target, force=force)
    bundle = bundle_path(path)
    if keep_undo and not force:
        refuse_other_bundle(bundle, source)
    migrations = as_set(folder, set_name)
    # While one thread compares checksums, this one writes the target.
    with _start(FileSource(source), migrations, on_step, options, threads=1) as run:

        def before_rename() -> None:
            run.verify()
            if keep_undo and run.report.target != run.report.source:
                write_bundle(bundle, run.pieces, run.source, run.report.ran)

        if run.report.target != run.report.source or not is_same_file(source, path):
            replace_file(path, run.pieces, run.source, before_rename=before_rename)
        return run.verify()


def inspect_file(path: str | os.PathLike[str] | int) -> Inspection:
    """What is in a file: format, history, outline, and every global and call that its pickle names.

    Raises:
        UnreadableCheckpoint: The file is no checkpoint that is read here, or it is damaged.
    """
    sharded = _sharded_folder(path)
    if sharded is not None:
        return sharded.kind.inspect()
    with FileSource(path) as source:
        in_tar = sharded_tar(source)
        if in_tar is not None:
            return in_tar[1].inspect()
        container = open_container(source)
        return Inspection.of(
            container.format, source.size, container.read(OutlineTensors(container))
        )


def _start(
    source: FileSource,
    migrations: MigrationSet,
    on_step: OnStep | None,
    options: RunKeywords,
    *,
    threads: int,
) -> Run:
    try:
        asked = RunOptions(**options)
        if isinstance(source, PartialSource) and is_tar(source):
            # Its files are read as parts of one that is there.
            raise source.whole_needed()
        in_tar = sharded_tar(source)
        if in_tar is not None:
            return start_tar_run(source, *in_tar, migrations, asked, on_step)
        return start_run(source, migrations, asked, on_step, threads=threads)
    except BaseException:
        source.close()
        raise

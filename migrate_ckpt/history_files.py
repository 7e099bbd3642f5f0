"""Files whose history says something else, written without running a migration."""

from __future__ import annotations

import os
from collections.abc import Collection

from migrate_ckpt.file_run import RunOptions, as_checkpoint, plan_contents, read_tensors
from migrate_ckpt.folder import DEFAULT_SET, MigrationSet, as_set
from migrate_ckpt.formats import open_container
from migrate_ckpt.formats.conversion import lay_out_as
from migrate_ckpt.formats.pieces import replace_file, whole
from migrate_ckpt.formats.source import FileSource
from migrate_ckpt.history import read_history
from migrate_ckpt.repairing import repair_history
from migrate_ckpt.sharded.recognition import refuse_sharded
from migrate_ckpt.stamping import stamp
from migrate_ckpt.targets import check_target, is_same_file


def stamp_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    folder: str | os.PathLike[str] | MigrationSet,
    set_name: str = DEFAULT_SET,
    force: bool = False,
) -> tuple[str, ...]:
    """Write a file whose history has all migrations of a set, without running any; gives the names in it.

    Raises:
        TargetExists, UnreadableCheckpoint, FolderError, InvalidHistory, UnwritableCheckpoint: As `migrate_file`.
    """
    refuse_sharded(source, "stamped")
    path = check_target(source, target, force=force)
    with FileSource(source) as opened:
        container = open_container(opened)
        contents = read_tensors(container)
        ckpt = stamp(as_checkpoint(contents.value), folder, set_name=set_name)
        pieces, _, _ = lay_out_as(ckpt, container, contents.protocol, None)
        replace_file(path, pieces, opened)
    return read_history(ckpt).names


def repair_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    folder: str | os.PathLike[str] | MigrationSet,
    names: Collection[str] = (),
    set_name: str = DEFAULT_SET,
    force: bool = False,
) -> tuple[str, ...]:
    """Write a file whose history says of edited and renamed migrations what they are now, without running any.

    It is for an edit that changes nothing for this checkpoint, which somebody has looked at: those that were reported
    as changed count as applied from then on.

    Args:
        source: The file.
        target: The file to write; where nothing is to be repaired, a copy.
        folder: The migrations as they are now.
        names: Which of them to accept; none means all.
        set_name: The set of the folder.
        force: Whether another file in the target's place is replaced.

    Returns:
        The names of those whose records were changed.

    Raises:
        TargetExists, UnreadableCheckpoint, FolderError, InvalidHistory, UnwritableCheckpoint: As `migrate_file`.
    """
    refuse_sharded(source, "repaired")
    path = check_target(source, target, force=force)
    migrations = as_set(folder, set_name)
    with FileSource(source) as opened:
        container = open_container(opened)
        contents = read_tensors(container)
        ckpt = as_checkpoint(contents.value)
        plan = plan_contents(contents, migrations, RunOptions(allow_unknown_history=True))
        repaired = repair_history(ckpt, plan, names)
        if repaired.names:
            pieces, _, _ = lay_out_as(repaired.ckpt, container, contents.protocol, None)
            replace_file(path, pieces, opened)
        elif not is_same_file(source, path):
            replace_file(path, whole(opened), opened)
    return repaired.names

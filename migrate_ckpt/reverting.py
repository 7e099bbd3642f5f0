"""Takes a run back: the old file from the migrated one and its undo bundle, or the one of a stop on the way."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from migrate_ckpt.errors import UndoRefused
from migrate_ckpt.file_run import RunKeywords
from migrate_ckpt.files import check_target, is_same_file, migrate_file, plan_file
from migrate_ckpt.folder import DEFAULT_SET, MigrationSet, as_set
from migrate_ckpt.formats.source import FileSource
from migrate_ckpt.plan import Policy
from migrate_ckpt.undo_bundle import UndoBundle, bundle_path


def revert_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    to: str | None = None,
    folder: str | os.PathLike[str] | MigrationSet | None = None,
    set_name: str = DEFAULT_SET,
    undo: str | os.PathLike[str] | None = None,
    force: bool = False,
) -> tuple[str, ...]:
    """Put back the file that a run with `keep_undo` migrated, byte for byte; gives the migrations that it takes back.

    With `to` it is the file that the run would have come to had it stopped there: what was put back is migrated again
    up to that one. Source and target may be the same path. Then the bundle is removed, or, with `to`, replaced by one
    of what is left to take back.

    Args:
        source: The migrated file.
        target: The file to write.
        to: The last migration that stays, one of the run's; None takes all of them back.
        folder: With `to`, the migrations.
        set_name: With `to`, the set of the folder that ran.
        undo: The undo bundle; None is the one beside the source, `NAME.undo`.
        force: Whether another file in the target's place is replaced.

    Raises:
        TargetExists: Another file is in the target's place, and `force` is not set.
        UndoRefused: There is no bundle, or it is not of this file, or `to` is not of its run, or the migrations up to
            it are no longer what ran. Nothing is written then.
        OSError: A file cannot be read or written.
        And with `to` what `migrate_file` raises.
    """
    path = check_target(source, target, force=force)
    bundle = bundle_path(source) if undo is None else Path(undo)
    if not bundle.exists():
        raise UndoRefused(
            f"There is no {bundle}. Only a run that was told to keep one (`run --keep-undo`) can be reverted.",
            path=bundle,
        )
    with FileSource(source) as migrated, FileSource(bundle) as held:
        opened = UndoBundle(held)
        is_in_place = is_same_file(source, path)
        if to is None:
            opened.restore(migrated, path)
            if is_in_place:
                bundle.unlink(missing_ok=True)
            return opened.ran
        stays = opened.ran_up_to(to)
        if folder is None:
            raise ValueError("To revert to a migration, the folder of migrations is needed.")
        migrations = as_set(folder, set_name)
        _refuse_edited(source, migrations, stays, bundle)
        with tempfile.TemporaryDirectory(prefix=f".{path.name[:100]}.", dir=path.parent) as beside:
            original = Path(beside) / path.name
            opened.restore(migrated, original)
            options = _options_of(original, migrations, stays, bundle)
            migrate_file(
                original, path, folder=migrations, force=True, keep_undo=is_in_place, **options
            )
    return opened.ran[len(stays) :]


def _refuse_edited(
    source: str | os.PathLike[str],
    migrations: MigrationSet,
    names: Sequence[str],
    bundle: Path,
) -> None:
    """Refuse to run migrations again that are not what they were when they ran on a file."""
    plan = plan_file(source, migrations, allow_unknown_history=True)
    edited = [name for name in names if name not in plan.applied]
    if edited:
        raise UndoRefused(
            f"{', '.join(edited)} would have to run again, and is not in the folder as it was when it ran on {source}. "
            "Revert all of it, or use the folder of then.",
            path=bundle,
        )


def _options_of(
    original: Path, migrations: MigrationSet, names: Sequence[str], bundle: Path
) -> RunKeywords:
    """Return how to come from a file to the last of these migrations by these alone."""
    for policy in get_args(Policy):
        if policy == "strict":
            continue
        options: RunKeywords = {"to": names[-1], "policy": policy, "allow_unknown_history": True}
        if plan_file(original, migrations, **options).to_run == tuple(names):
            return options
    raise UndoRefused(
        f"The folder has other migrations up to {names[-1]} than those that ran: {', '.join(names)}. Revert all of it.",
        path=bundle,
    )

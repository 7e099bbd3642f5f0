"""Takes migrations of a file back: byte for byte with the undo bundle of their run, or else by what they declare."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from migrate_ckpt.errors import UndoRefused
from migrate_ckpt.file_run import (
    RunKeywords,
    as_checkpoint,
    read_tensors,
    without_garbage_collection,
)
from migrate_ckpt.files import migrate_file, plan_file
from migrate_ckpt.folder import DEFAULT_SET, MigrationSet, as_set
from migrate_ckpt.formats import open_container
from migrate_ckpt.formats.conversion import lay_out_as
from migrate_ckpt.formats.pieces import replace_file, whole
from migrate_ckpt.formats.source import FileSource
from migrate_ckpt.formats.verification import Verification
from migrate_ckpt.history import read_history
from migrate_ckpt.loader import load_migrations
from migrate_ckpt.plan import Policy
from migrate_ckpt.reverse_run import ReverseRun, names_to_revert
from migrate_ckpt.sharded.recognition import refuse_sharded
from migrate_ckpt.targets import check_target, is_same_file
from migrate_ckpt.undo_bundle import UndoBundle, bundle_path


@dataclass(frozen=True, slots=True)
class Reverted:
    """What was taken back.

    Attributes:
        names: The migrations, in the order in which they had run.
        warnings: What a reader should know of those that were taken back by what they declare, a sentence each.
    """

    names: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def revert_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    to: str | None = None,
    folder: str | os.PathLike[str] | MigrationSet | None = None,
    set_name: str = DEFAULT_SET,
    undo: str | os.PathLike[str] | None = None,
    force: bool = False,
) -> Reverted:
    """Take migrations of a file back. Source and target may be the same path.

    With the undo bundle of the run that migrated it (`keep_undo`), it is the old file again, byte for byte, whatever
    the migrations did; with `to`, the file that the run would have come to had it stopped there. In place the bundle
    is used up then: removed, or, with `to`, replaced by one of what is left to take back.

    Without one, or where the file was changed since, as by training, each migration is taken back by its
    `revert(ckpt)`, or by the inverses of its operations, and leaves the history. What comes out is a file that the
    same migrations make this one of; it is refused where there is none.

    Args:
        source: The migrated file.
        target: The file to write.
        to: The last migration that stays; None takes all of them back: of the bundle's run, or of the set.
        folder: The migrations; with a bundle they are needed for `to` only.
        set_name: The set of the folder that ran.
        undo: The undo bundle, which must be of this file; None uses the one beside the source, `NAME.undo`, if it is.
        force: Whether another file in the target's place is replaced.

    Raises:
        TargetExists: Another file is in the target's place, and `force` is not set.
        UndoRefused: The bundle is damaged, or not of this file; or a migration gives up something that nothing else
            tells; or `to` was not applied. Nothing is written then.
        OSError: A file cannot be read or written.
        UnwritableCheckpoint: The file is a sharded checkpoint.
        And what `plan_file` raises, and with `to` and a bundle what `migrate_file` raises.
    """
    refuse_sharded(source, "taken back")
    path = check_target(source, target, force=force)
    with _bundle_of(source, undo) as bundle:
        if bundle is not None and to is None:
            return _restore(source, path, bundle)
        if folder is None:
            raise _needing_migrations(source, bundle)
        migrations = as_set(folder, set_name)
        if bundle is None or to is None:
            return _revert_by_migrations(source, path, migrations, to, shown=Path(source))
        return _restore_and_go_on(source, path, migrations, to, bundle)


@contextlib.contextmanager
def _bundle_of(
    source: str | os.PathLike[str], undo: str | os.PathLike[str] | None
) -> Iterator[UndoBundle | None]:
    """Open the bundle that is given, or the one beside a file, if that is of the file as it is now."""
    bundle = bundle_path(source) if undo is None else Path(undo)
    if undo is None and not bundle.exists():
        yield None
        return
    if not bundle.exists():
        raise UndoRefused(f"There is no {bundle}.", path=bundle)
    with FileSource(bundle) as held:
        opened = UndoBundle(held)
        with FileSource(source) as migrated:
            is_of_source = opened.is_of_migrated(migrated)
        if undo is not None and not is_of_source:
            raise UndoRefused(
                f"{source} is not the file that {bundle.name} was written with: it was changed since, or the bundle "
                "is another file's. Only that very file can be put back.",
                path=bundle,
            )
        yield opened if is_of_source else None


def _needing_migrations(source: str | os.PathLike[str], bundle: UndoBundle | None) -> UndoRefused:
    path = bundle_path(source)
    why = f"There is no undo bundle of {source} (`run --keep-undo` writes one)."
    if bundle is not None:
        why = "To stop at a migration they must run again, or be taken back."
    elif path.exists():
        why = f"{path} is not of {source} as it is now: it was changed since, or the bundle is another file's."
    return UndoRefused(f"The folder of migrations is needed. {why}", path=path)


def _restore(source: str | os.PathLike[str], path: Path, bundle: UndoBundle) -> Reverted:
    is_in_place = is_same_file(source, path)
    with FileSource(source) as migrated:
        bundle.restore(migrated, path)
    if is_in_place:
        bundle.path.unlink(missing_ok=True)
    return Reverted(bundle.ran)


def _restore_and_go_on(
    source: str | os.PathLike[str],
    path: Path,
    migrations: MigrationSet,
    to: str,
    bundle: UndoBundle,
) -> Reverted:
    """Put the old file back and go on from there: up to a migration of the run again, or back to one before it."""
    is_in_place = is_same_file(source, path)
    stays = bundle.ran_up_to(to)
    _refuse_edited(source, migrations, stays, bundle.path)
    with tempfile.TemporaryDirectory(prefix=f".{path.name[:100]}.", dir=path.parent) as beside:
        original = Path(beside) / path.name
        with FileSource(source) as migrated:
            bundle.restore(migrated, original)
        if stays:
            options = _options_of(original, migrations, stays, bundle.path)
            migrate_file(
                original, path, folder=migrations, force=True, keep_undo=is_in_place, **options
            )
            return Reverted(bundle.ran[len(stays) :])
        reverted = _revert_by_migrations(original, path, migrations, to, shown=Path(source))
    if is_in_place:
        bundle.path.unlink(missing_ok=True)
    return Reverted((*reverted.names, *bundle.ran), reverted.warnings)


def _revert_by_migrations(
    source: str | os.PathLike[str],
    path: Path,
    migrations: MigrationSet,
    to: str | None,
    *,
    shown: Path,
) -> Reverted:
    with FileSource(source) as opened, FileSource(source) as again:
        with without_garbage_collection():
            container = open_container(opened)
        contents = read_tensors(container)
        ckpt = as_checkpoint(contents.value)
        plan = plan_file(source, migrations, allow_unknown_history=True)
        names = names_to_revert(plan, read_history(ckpt).names, to, shown)
        if not names:
            if not is_same_file(source, path):
                replace_file(path, whole(opened), opened)
            return Reverted(())
        run = ReverseRun(plan, names, load_migrations(migrations), shown)
        verification = Verification(opened, container.checksums)
        try:
            ckpt = run.revert(ckpt)
            with without_garbage_collection():
                pieces, _, sentences = lay_out_as(ckpt, container, contents.protocol, None)

            def prove() -> None:
                # A migration may write into tensors, so what is to be kept is written before.
                made = run.run_again(ckpt)
                came_in = as_checkpoint(read_tensors(open_container(again)).value)
                run.judge(made, came_in, container)
                verification.finish()

            replace_file(path, pieces, opened, before_rename=prove)
        finally:
            verification.cancel()
    return Reverted(tuple(names), (*run.warnings, *sentences))


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

"""Checkpoints in files: read, plan, migrate, write, look into.

The format is decided by content. A file is written beside its target, flushed and renamed, so there is never half a
file, and source and target may be the same path.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from migrate_ckpt.errors import TargetExists, UnreadableCheckpoint
from migrate_ckpt.folder import DEFAULT_SET, MigrationSet, read_set
from migrate_ckpt.foreign import ForeignObject, global_path
from migrate_ckpt.formats import open_container
from migrate_ckpt.formats.container import Container, Contents
from migrate_ckpt.formats.outline_tensors import OutlineTensors
from migrate_ckpt.formats.pieces import Pieces, replace_file, whole
from migrate_ckpt.formats.source import FileSource
from migrate_ckpt.formats.torch_zip import lay_out
from migrate_ckpt.history import read_history
from migrate_ckpt.inspection import Inspection
from migrate_ckpt.loader import load_migrations
from migrate_ckpt.migration import CkptType
from migrate_ckpt.plan import Plan, Policy, make_plan
from migrate_ckpt.report import Report
from migrate_ckpt.runner import OnStep, run_plan
from migrate_ckpt.stamping import stamp


@dataclass(frozen=True, slots=True)
class Run:
    """What a run gives: the report, and the migrated file as pieces of new bytes and ranges of the source.

    The pieces are good until the run is closed; it is a context manager.
    """

    report: Report
    pieces: Pieces
    source: FileSource

    def close(self) -> None:
        self.source.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def read_checkpoint(path: str | os.PathLike[str]) -> CkptType:
    """Read a checkpoint without importing anything that it names.

    Tensors are mapped: their bytes are read when they are used, and writing to them does not change the file.

    Raises:
        OSError: The file cannot be opened.
        UnreadableCheckpoint: It is no checkpoint that is read here, or it is damaged.
    """
    return _as_checkpoint(_read(open_container(FileSource(path))).value)


def write_checkpoint(ckpt: CkptType, path: str | os.PathLike[str]) -> None:
    """Write a checkpoint as torch's zip; an existing file is replaced once the new one is whole.

    Storages that were read from a file and not changed since are copied from there by the kernel.

    Raises:
        OSError: The file cannot be written.
        UnwritableCheckpoint: The checkpoint holds what cannot be contents.
    """
    from migrate_ckpt.formats.pickle_writer import write_pickle
    from migrate_ckpt.formats.tensor_writer import TensorWriter

    writer = TensorWriter()
    pickle = write_pickle(ckpt, writer)
    replace_file(Path(path), lay_out(pickle, writer), writer.base.source if writer.base else None)


def plan_file(
    path: str | os.PathLike[str],
    migrations: MigrationSet,
    *,
    to: str | None = None,
    policy: Policy = "skip-missed",
    allow_unknown_history: bool = False,
) -> Plan:
    """What running a set on a file would do. Loads no torch, runs no migration, reads no tensor.

    Raises:
        UnreadableCheckpoint: The file is no checkpoint that is read here, or it is damaged.
        InvalidHistory, HistoryRefused, UnknownMigration: As `make_plan` says.
    """
    with FileSource(path) as source:
        container = open_container(source)
        ckpt = _as_checkpoint(container.read(OutlineTensors(container)).value)
        return _plan(ckpt, migrations, to, policy, allow_unknown_history)


def run_file(
    path: str | os.PathLike[str],
    migrations: MigrationSet,
    *,
    to: str | None = None,
    policy: Policy = "skip-missed",
    allow_unknown_history: bool = False,
    on_step: OnStep | None = None,
) -> Run:
    """Run a set on a file and lay out the result, which nothing is written of yet. The file stays as it is.

    Raises:
        MigrationFailed: A migration raised or returned no checkpoint; carries the report so far.
        UnwritableCheckpoint: What the migrations made cannot be contents.
        And what `plan_file` raises.
    """
    source = FileSource(path)
    try:
        return _run(source, migrations, (to, policy, allow_unknown_history), on_step)
    except BaseException:
        source.close()
        raise


def migrate_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    folder: str | os.PathLike[str],
    set_name: str = DEFAULT_SET,
    to: str | None = None,
    policy: Policy = "skip-missed",
    allow_unknown_history: bool = False,
    force: bool = False,
    on_step: OnStep | None = None,
) -> Report:
    """Migrate a file with a folder of migrations. Source and target may be the same path.

    Where nothing is pending the target is a copy of the source, and the source itself is not written again.

    Raises:
        TargetExists: Another file is in the target's place, and `force` is not set.
        FolderError: The folder of migrations cannot be used.
        And what `run_file` raises. Then there is no target, and the source is as it was.
    """
    path = _check_target(source, target, force=force)
    migrations = read_set(folder, set_name)
    with run_file(
        source,
        migrations,
        to=to,
        policy=policy,
        allow_unknown_history=allow_unknown_history,
        on_step=on_step,
    ) as run:
        if run.report.plan.has_work or not _is_same_file(source, path):
            replace_file(path, run.pieces, run.source)
        return run.report


def stamp_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    folder: str | os.PathLike[str],
    set_name: str = DEFAULT_SET,
    force: bool = False,
) -> tuple[str, ...]:
    """Write a file whose history has all migrations of a set, without running any; gives the names in it.

    Raises:
        TargetExists, UnreadableCheckpoint, FolderError, InvalidHistory, UnwritableCheckpoint: As `migrate_file`.
    """
    path = _check_target(source, target, force=force)
    with FileSource(source) as opened:
        container = open_container(opened)
        contents = _read(container)
        ckpt = stamp(_as_checkpoint(contents.value), folder, set_name=set_name)
        pieces = _lay_out(ckpt, container, contents.protocol)
        replace_file(path, pieces, opened)
    return read_history(ckpt).names


def inspect_file(path: str | os.PathLike[str]) -> Inspection:
    """What is in a file: format, history, outline, and every global and call that its pickle names.

    Raises:
        UnreadableCheckpoint: The file is no checkpoint that is read here, or it is damaged.
    """
    with FileSource(path) as source:
        container = open_container(source)
        return Inspection.of(
            container.format, source.size, container.read(OutlineTensors(container))
        )


def _run(
    source: FileSource,
    migrations: MigrationSet,
    choices: tuple[str | None, Policy, bool],
    on_step: OnStep | None,
) -> Run:
    container = open_container(source)
    contents = _read(container)
    ckpt = _as_checkpoint(contents.value)
    plan = _plan(ckpt, migrations, *choices)
    facts = {"format": container.format, "size": source.size}
    if not plan.has_work:
        report = Report(plan, warnings=plan.warnings, source=facts, target=facts)
        return Run(report, whole(source), source)
    ckpt, report = run_plan(ckpt, plan, load_migrations(migrations), on_step=on_step)
    pieces = _lay_out(ckpt, container, contents.protocol)
    target = {"format": "torch", "size": pieces.size, "copied_bytes": pieces.copied_bytes}
    return Run(replace(report, source=facts, target=target), pieces, source)


def _read(container: Container) -> Contents:
    # Loading torch takes a second, which those who only look into a file need not wait.
    from migrate_ckpt.formats.tensors import MappedTensors

    with _without_garbage_collection():
        return container.read(MappedTensors(container))


def _lay_out(ckpt: CkptType, container: Container, protocol: int) -> Pieces:
    from migrate_ckpt.formats.pickle_writer import write_pickle
    from migrate_ckpt.formats.tensor_writer import TensorWriter

    writer = TensorWriter(container)
    return lay_out(write_pickle(ckpt, writer, protocol), writer)


def _check_target(
    source: str | os.PathLike[str], target: str | os.PathLike[str], *, force: bool
) -> Path:
    path = Path(target)
    if path.exists() and not force and not _is_same_file(source, path):
        raise TargetExists(
            f"{path} exists already. Choose another target, or replace it with force.", path=path
        )
    return path


def _is_same_file(source: str | os.PathLike[str], path: Path) -> bool:
    return path.exists() and os.path.samefile(source, path)


def _plan(
    ckpt: CkptType,
    migrations: MigrationSet,
    to: str | None,
    policy: Policy,
    allow_unknown_history: bool,
) -> Plan:
    return make_plan(
        migrations.files,
        read_history(ckpt),
        set_name=migrations.name,
        set_digest=migrations.digest,
        to=to,
        policy=policy,
        allow_unknown_history=allow_unknown_history,
    )


def _as_checkpoint(value: Any) -> CkptType:
    if isinstance(value, MutableMapping):
        return value
    kind = f"a {type(value).__name__}"
    if isinstance(value, ForeignObject):
        kind = f"an object of {global_path(value.__class__)}"
    raise UnreadableCheckpoint(
        f"the file holds {kind}, not a mapping: save a dict or a state dict to migrate it"
    )


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Reading makes many objects and no garbage; looking through them all again and again doubles its time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()

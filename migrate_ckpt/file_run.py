"""One run of a set of migrations on an opened file, from its first byte to the pieces of the migrated one."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, NoReturn, TypedDict

from migrate_ckpt.absent import is_absent
from migrate_ckpt.errors import MigrationFailed, RequirementsNotMet, UnreadableCheckpoint
from migrate_ckpt.folder import MigrationSet
from migrate_ckpt.foreign import ForeignGlobal, ForeignObject, describe, global_path
from migrate_ckpt.formats import open_container
from migrate_ckpt.formats.allowed_globals import refuse_globals
from migrate_ckpt.formats.container import Container, Contents
from migrate_ckpt.formats.conversion import Format, lay_out_as
from migrate_ckpt.formats.partial_source import PartialSource
from migrate_ckpt.formats.pieces import Pieces, whole
from migrate_ckpt.formats.source import FileSource
from migrate_ckpt.formats.storages import StorageHandle
from migrate_ckpt.formats.torch_zip import lay_out
from migrate_ckpt.formats.verification import Verification
from migrate_ckpt.history import History, read_history
from migrate_ckpt.loader import load_migrations
from migrate_ckpt.migration import CkptType, Migration
from migrate_ckpt.operations.sections import is_tensor
from migrate_ckpt.outline import each_once
from migrate_ckpt.plan import Plan, Policy, make_plan
from migrate_ckpt.report import Report
from migrate_ckpt.runner import OnStep, run_plan
from migrate_ckpt.verifying import refuse_unmet

_NAMES_SHOWN = 10


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a run may be told.

    Attributes:
        to: The migration to stop after; None runs all that is pending.
        policy: What to do about missed migrations.
        allow_unknown_history: Whether a history that names none of the set's migrations is no reason to refuse.
        format: The format to write; None keeps the one that came in.
        allowed_globals: Paths or patterns of the classes and functions that the file may name; None allows all.
    """

    to: str | None = None
    policy: Policy = "skip-missed"
    allow_unknown_history: bool = False
    format: Format | None = None
    allowed_globals: Sequence[str] | None = None


class RunKeywords(TypedDict, total=False):
    """The same as keywords."""

    to: str | None
    policy: Policy
    allow_unknown_history: bool
    format: Format | None
    allowed_globals: Sequence[str] | None


class Run:
    """What a run gives: the report, and the migrated file as pieces of new bytes and ranges of the source.

    The source's checksums are compared while the run goes on: call `verify` before the pieces are given away. The
    pieces are good until the run is closed; it is a context manager.
    """

    def __init__(
        self, report: Report, pieces: Pieces, source: FileSource, verification: Verification
    ) -> None:
        self.report = report
        self.pieces = pieces
        self.source = source
        self._verification = verification

    def verify(self) -> Report:
        """Wait until all bytes of the source were compared; gives the report, which then says so.

        Raises:
            UnreadableCheckpoint: The source is damaged.
        """
        self.report = replace(self.report, bytes_verified=self._verification.finish())
        return self.report

    def close(self) -> None:
        self._verification.cancel()
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


def start_run(
    source: FileSource,
    migrations: MigrationSet,
    options: RunOptions,
    on_step: OnStep | None,
    *,
    threads: int,
) -> Run:
    """Run a set on a source; the run owns it from then on. Checksums are compared by so many threads."""
    with without_garbage_collection():
        container = open_container(source)
    verification = Verification(source, container.checksums, threads=threads)
    try:
        report, pieces = _migrate(container, migrations, options, on_step)
    except BaseException:
        verification.cancel()
        raise
    return Run(report, pieces, source, verification)


def _migrate(
    container: Container, migrations: MigrationSet, options: RunOptions, on_step: OnStep | None
) -> tuple[Report, Pieces]:
    if isinstance(container.source, PartialSource):
        _refuse_other_format(container, container.source, options)
    contents = read_tensors(container)
    plan = plan_contents(contents, migrations, options)
    source = {"format": container.format, "size": container.source.size}
    if not plan.has_work:
        value = as_checkpoint(contents.value)
        refuse_unmet(migrations.manifest, value, Report(plan))
        if options.format in (None, container.format):
            return Report(plan, warnings=plan.warnings, source=source, target=source), whole(
                container.source
            )
        ckpt, report = value, Report(plan, warnings=plan.warnings)
    else:
        loaded = load_migrations(migrations)
        ckpt, report = _run_plan(container.source, contents.value, plan, loaded, on_step)
        refuse_unmet(migrations.manifest, ckpt, report)
    with without_garbage_collection():
        pieces, format, sentences = lay_out_as(ckpt, container, contents.protocol, options.format)
    target = {"format": format, "size": pieces.size, "copied_bytes": pieces.copied_bytes}
    sentences = (*_hidden_calls_left_out(contents), *sentences)
    return replace(
        report, warnings=(*report.warnings, *sentences), source=source, target=target
    ), pieces


def _hidden_calls_left_out(contents: Contents) -> tuple[str, ...]:
    if not contents.hidden_calls:
        return ()
    paths = dict.fromkeys(map(describe, contents.hidden_calls))
    more = " and others" if len(paths) > _NAMES_SHOWN else ""
    shown = ", ".join([*paths][:_NAMES_SHOWN]) + more
    return (f"Calls whose results nothing in the file holds are not in the new one: {shown}.",)


def _refuse_other_format(container: Container, source: PartialSource, options: RunOptions) -> None:
    """Let what reads every byte, as another format does, have all of the file."""
    if options.format not in (None, container.format):
        raise source.whole_needed()


def _run_plan(
    source: FileSource,
    ckpt: CkptType,
    plan: Plan,
    migrations: Sequence[Migration],
    on_step: OnStep | None,
) -> tuple[CkptType, Report]:
    """Run a plan; where some tensors are absent, it is their structure that shows what reads them.

    Raises:
        BytesNeeded: A migration wants to see bytes, or is a function, of which nobody knows what it reads.
    """
    if not isinstance(source, PartialSource):
        return run_plan(ckpt, plan, migrations, on_step=on_step)
    if any(m.operations is None for m in migrations if m.name in plan.to_run):
        raise source.whole_needed()
    try:
        made = run_plan(ckpt, plan, migrations, on_step=on_step)
    except RequirementsNotMet:
        raise
    except MigrationFailed as error:
        # What failed without bytes may have wanted to see some.
        source.refuse_needed()
        raise source.whole_needed() from error
    source.refuse_needed()
    _refuse_made_of_absent(source, made[0])
    return made


def _refuse_made_of_absent(source: PartialSource, ckpt: CkptType) -> None:
    """Let an operation that has read absent tensors without a word, as only one of others does, have all bytes."""
    for _, value in each_once(ckpt):
        if is_tensor(value) and value.is_meta and not is_absent(value):
            raise source.whole_needed()


def plan_contents(contents: Contents, migrations: MigrationSet, options: RunOptions) -> Plan:
    """Plan a set for what a file holds. What is no mapping has no history: its first migration may turn it into one."""
    refuse_globals(contents, options.allowed_globals)
    value = contents.value
    history = read_history(value) if isinstance(value, Mapping) else History()
    return plan_history(history, migrations, options)


def plan_history(history: History, migrations: MigrationSet, options: RunOptions) -> Plan:
    """Plan a set for a history."""
    return make_plan(
        migrations.files,
        history,
        set_name=migrations.name,
        set_digest=migrations.digest,
        to=options.to,
        policy=options.policy,
        allow_unknown_history=options.allow_unknown_history,
    )


def read_tensors(container: Container) -> Contents:
    """Read a container with real tensors, mapped from its source."""
    # Loading torch takes a second, which those who only look into a file need not wait.
    from migrate_ckpt.formats.tensors import MappedTensors, PartialTensors

    source = container.source
    with without_garbage_collection():
        if not isinstance(source, PartialSource):
            return container.read(MappedTensors(container))
        contents = container.read(PartialTensors(container, source))
        source.refuse_needed()
        return contents


def lay_out_new(ckpt: CkptType) -> tuple[Pieces, FileSource | None]:
    """The pieces of a file for a checkpoint of any origin, and the source, if any, that its ranges are of."""
    from migrate_ckpt.formats.pickle_writer import write_pickle
    from migrate_ckpt.formats.tensor_writer import TensorWriter

    writer = TensorWriter()
    with without_garbage_collection():
        pieces = lay_out(write_pickle(ckpt, writer), writer)
    return pieces, writer.base.source if writer.base else None


def as_checkpoint(value: Any) -> CkptType:
    """The value itself, if it is a mapping.

    Raises:
        UnreadableCheckpoint: It is none; says what it is.
    """
    if isinstance(value, MutableMapping):
        return value
    _refuse(value)


def _refuse(value: Any) -> NoReturn:
    kind = f"a {type(value).__name__}"
    if isinstance(value, ForeignObject):
        kind = f"an object of {global_path(value.__class__)}"
    elif isinstance(value, ForeignGlobal):
        kind = f"the class or function {global_path(value)}"
    elif isinstance(value, StorageHandle):
        kind = f"a storage by itself ({global_path(value.type)})"
    raise UnreadableCheckpoint(
        f"the file holds {kind}, not a mapping that can be worked with. Save a dict or a state dict, or turn it into "
        "one in a migration"
    )


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Reading and writing make many objects and no garbage; looking through them again and again doubles the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()

"""Runs a set of migrations on a `torch.distributed.checkpoint` folder as on one checkpoint.

Tensors are run over without their bytes, so that renaming a checkpoint of any size costs its metadata; those that an
operation reads, or all if a function wants to see them, are put together from their parts. What is new is written into
one more file; all other bytes stay where they are, and only `.metadata` says what they are called now.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from migrate_ckpt.absent import is_absent
from migrate_ckpt.errors import (
    MigrationFailed,
    RequirementsNotMet,
)
from migrate_ckpt.file_run import RunOptions, lay_out_new, plan_history
from migrate_ckpt.folder import MigrationSet
from migrate_ckpt.formats.allowed_globals import refuse_globals
from migrate_ckpt.formats.container import Contents
from migrate_ckpt.formats.outline_tensors import OutlineTensors
from migrate_ckpt.formats.pickle_reader import MAX_PICKLE_BYTES
from migrate_ckpt.formats.pieces import (
    Pieces,
    Range,
    whole,
)
from migrate_ckpt.history import read_history
from migrate_ckpt.inspection import Inspection
from migrate_ckpt.loader import load_migrations
from migrate_ckpt.operations.sections import is_tensor
from migrate_ckpt.plan import Plan
from migrate_ckpt.report import Report
from migrate_ckpt.runner import OnStep, run_plan
from migrate_ckpt.sharded.distributed_checkpoint import DistributedCheckpoint, Parts
from migrate_ckpt.sharded.distributed_metadata import (
    METADATA_NAME,
    OWN_GLOBALS,
    DistributedMetadata,
    Item,
)
from migrate_ckpt.sharded.files import Files, read_whole
from migrate_ckpt.sharded.flattening import KeyPath, flattened, refuse_unreadable
from migrate_ckpt.sharded.names import FreeNames, tag_of
from migrate_ckpt.sharded.new_set import NewFile, NewSet, in_memory, with_facts
from migrate_ckpt.verifying import refuse_unmet

if TYPE_CHECKING:
    from migrate_ckpt.migration import Migration

NEW_FILE = "__migrated_{}.distcp"


class DistributedKind:
    """What can be done with a distributed checkpoint (see `kind.Kind`)."""

    def __init__(self, files: Files) -> None:
        self._files = files

    @cached_property
    def _metadata(self) -> DistributedMetadata:
        return DistributedMetadata(self._files)

    def names(self) -> frozenset[str]:
        return frozenset(self._metadata.files)

    def plan(self, migrations: MigrationSet, options: RunOptions) -> Plan:
        """Plan a set; no bytes of tensors are read."""
        metadata = self._metadata
        _refuse_globals(self._files, metadata, options)
        return plan_history(
            read_history(DistributedCheckpoint(self._files, metadata, ()).ckpt), migrations, options
        )

    def read(self, builder_of: Callable[..., Any]) -> Any:
        """Return the state dict, with the bytes of its tensors or without."""
        from migrate_ckpt.formats.tensors import MetaTensors

        metadata = self._metadata
        everything = [] if builder_of is MetaTensors else [item.name for item in metadata.items]
        self._opened = DistributedCheckpoint(self._files, metadata, everything)
        return self._opened.ckpt

    def written(self) -> set[str]:
        """Return nothing: what is in memory has no keys of storages."""
        return set()

    def inspect(self) -> Inspection:
        metadata = self._metadata
        ckpt = DistributedCheckpoint(self._files, metadata, ()).ckpt
        parts = [metadata.contents, *_parts(self._files, metadata)]
        contents = Contents.joined(ckpt, parts)
        return Inspection.of("distributed", _size(self._files, metadata), contents)

    def run(
        self,
        migrations: MigrationSet,
        options: RunOptions,
        *,
        in_place: bool,
        taken: Collection[str],
        on_step: OnStep | None,
    ) -> NewSet:
        """Run a set, and lay out the result (see `kind.Kind`)."""
        metadata = self._metadata
        _refuse_globals(self._files, metadata, options)
        opened = DistributedCheckpoint(self._files, metadata, ())
        plan = plan_history(read_history(opened.ckpt), migrations, options)
        ckpt: Any = opened.ckpt
        report = Report(plan, warnings=plan.warnings)
        if plan.has_work:
            loaded = load_migrations(migrations)
            opened, ckpt, report = _run(self._files, metadata, plan, loaded, on_step)
        refuse_unmet(migrations.manifest, ckpt, report)
        free = FreeNames(taken, read_history(ckpt))
        old = opened.metadata.files
        names = {file: file if in_place else free.of(file) for file in old}
        return _lay_out(self._files, opened, ckpt, report, names, free)


def _run(
    files: Files,
    metadata: DistributedMetadata,
    plan: Plan,
    migrations: list[Migration],
    on_step: OnStep | None,
) -> tuple[DistributedCheckpoint, Any, Report]:
    """Run a plan, without bytes first; each try knows of more tensors that must be there."""
    everything = {item.name for item in metadata.items}
    is_declared = all(m.operations is not None for m in migrations if m.name in plan.to_run)
    there: set[str] = set() if is_declared else everything
    while True:
        opened = DistributedCheckpoint(files, metadata, there)
        try:
            ckpt, report = run_plan(
                opened.ckpt, plan, migrations, on_step=on_step, history_in_metadata=False
            )
        except RequirementsNotMet:
            raise
        except MigrationFailed:
            # What failed without bytes may have wanted to see some.
            if there == everything:
                raise
            there = there | opened.needed if opened.needed else everything
            continue
        if not opened.needed and not any(map(_is_made_of_nothing, flattened(ckpt, opened.is_one))):
            return opened, ckpt, report
        there = there | opened.needed if opened.needed else everything


def _is_made_of_nothing(leaf: tuple[KeyPath, Any]) -> bool:
    """Tell whether a tensor was made of one whose bytes were not there."""
    return is_tensor(leaf[1]) and leaf[1].is_meta and not is_absent(leaf[1])


def _lay_out(
    files: Files,
    opened: DistributedCheckpoint,
    ckpt: Any,
    report: Report,
    names: Mapping[str, str],
    free: FreeNames,
) -> NewSet:
    """Lay out the old files that something is left of, by their new names, one of what is new, and the metadata."""
    metadata = opened.metadata
    name = free.of(NEW_FILE.format(tag_of(read_history(ckpt))))
    items, new = _items(opened, ckpt, names, name)
    held = {file: files.open(file) for file in _left(metadata, items, names)}
    laid_out = [
        NewFile(names[file], whole(source), source, is_as_it_was=True)
        for file, source in held.items()
    ]
    if new.size:
        laid_out.append(NewFile(name, new, None))
    source = {
        "format": "distributed",
        "size": _size(files, metadata),
        "shards": len(metadata.files),
    }
    report = with_facts(report, source, laid_out, bytes_verified=False)
    text = Pieces()
    is_same = not report.plan.has_work and all(old == new for old, new in names.items())
    text.add_bytes(
        read_whole(files, METADATA_NAME, MAX_PICKLE_BYTES) if is_same else metadata.write(items)
    )
    laid_out.append(NewFile(METADATA_NAME, text, None))
    return NewSet(report, tuple(laid_out), metadata.files, list(held.values()), kept=ckpt)


def _items(
    opened: DistributedCheckpoint, ckpt: Any, names: Mapping[str, str], new_file: str
) -> tuple[list[Item], Pieces]:
    """Return the items that a state dict is made of, and the bytes of those that are new, which go into one file."""
    new = Pieces()
    items: list[Item] = []
    leaves = flattened(ckpt, opened.is_one)
    refuse_unreadable(path for path, _ in leaves)
    for path, value in leaves:
        item = opened.item_of(value)
        if item is not None:
            items.append(opened.metadata.renamed(item, path, names))
            continue
        offset = new.size
        for piece in in_memory(*lay_out_new(value)):
            assert not isinstance(piece, Range), "all of it is in memory"
            new.add_bytes(piece)
        items.append(opened.metadata.new(path, value, new_file, offset, new.size - offset))
    return items, new


def _left(
    metadata: DistributedMetadata, items: Iterable[Item], names: Mapping[str, str]
) -> list[str]:
    """Return the old files that some items still need."""
    used = {place.file for item in items for place in item.places}
    return [file for file in metadata.files if names[file] in used]


def _refuse_globals(files: Files, metadata: DistributedMetadata, options: RunOptions) -> None:
    """Refuse what names other classes and functions than are allowed, wherever it is; no tensor data is read.

    Raises:
        RefusedGlobals: Something does.
    """
    if options.allowed_globals is None:
        return
    refuse_globals(metadata.contents, (*options.allowed_globals, *OWN_GLOBALS))
    for part in _parts(files, metadata):
        refuse_globals(part, options.allowed_globals)


def _parts(files: Files, metadata: DistributedMetadata) -> Iterator[Contents]:
    """Yield what each part of each value holds and names; no tensor data is read."""
    opened = Parts(files)
    for item in metadata.items:
        for place in item.places:
            container = opened.open(place)
            yield container.read(OutlineTensors(container))


def _size(files: Files, metadata: DistributedMetadata) -> int:
    sizes = files.sizes()
    return sum(sizes[file] for file in metadata.files)

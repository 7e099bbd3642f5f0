"""Runs a set of migrations on a `torch.distributed.checkpoint` folder as on one checkpoint.

Tensors are run over without their bytes, so that renaming a checkpoint of any size costs its metadata; those that an
operation reads, or all if a function wants to see them, are put together from their parts. What is new is written into
one more file; all other bytes stay where they are, and only `.metadata` says what they are called now.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from migrate_ckpt.absent import is_absent, mark_absent
from migrate_ckpt.content_hashes import hash_whole
from migrate_ckpt.errors import (
    MigrationFailed,
    RequirementsNotMet,
    UnreadableCheckpoint,
    UnwritableCheckpoint,
)
from migrate_ckpt.file_run import RunOptions, lay_out_new
from migrate_ckpt.folder import MigrationSet
from migrate_ckpt.formats import open_container
from migrate_ckpt.formats.allowed_globals import refuse_globals
from migrate_ckpt.formats.container import Container, Contents
from migrate_ckpt.formats.outline_tensors import OutlineTensors
from migrate_ckpt.formats.pickle_reader import MAX_PICKLE_BYTES
from migrate_ckpt.formats.pieces import (
    Pieces,
    Range,
    whole,
)
from migrate_ckpt.formats.source import FileSource, Slice
from migrate_ckpt.history import ckpt_migration_key, read_history, records_key
from migrate_ckpt.inspection import Inspection
from migrate_ckpt.loader import load_migrations
from migrate_ckpt.operations.sections import is_tensor
from migrate_ckpt.outline import OutlineEntry, outline
from migrate_ckpt.plan import Plan
from migrate_ckpt.report import Report
from migrate_ckpt.runner import OnStep, run_plan
from migrate_ckpt.sharded.distributed_metadata import (
    METADATA_NAME,
    OWN_GLOBALS,
    DistributedMetadata,
    Item,
    KeyPath,
    Place,
)
from migrate_ckpt.sharded.files import Files, read_whole
from migrate_ckpt.sharded.new_set import NewFile, NewSet, in_memory
from migrate_ckpt.sharded.planning import plan_ckpt, tag_of
from migrate_ckpt.verifying import refuse_unmet

if TYPE_CHECKING:
    import torch

    from migrate_ckpt.migration import Migration

NEW_FILE = "__migrated_{}.distcp"
MAX_VALUE_BYTES = 1 << 30
"""How long a value may be that is no tensor."""


class DistributedCheckpoint:
    """What a folder holds, with tensors that are there or not, and which item each of its values is.

    Attributes:
        metadata: What its metadata says.
        ckpt: The state dict, nested as it was before it was flattened.
        needed: The items whose bytes something wanted to see and that were not there.
    """

    def __init__(self, files: Files, metadata: DistributedMetadata, there: Collection[str]) -> None:
        """Read some files; `there` are the names of the tensors to be read with their bytes."""
        self._files = files
        self.metadata = metadata
        self.needed: set[str] = set()
        self._items: dict[int, Item] = {}
        self._hashes: dict[int, int] = {}
        self._known: dict[int, list[OutlineEntry]] = {}
        self._alive: list[Any] = []
        self.ckpt: dict[str, Any] = {}
        for item in metadata.items:
            _put(self.ckpt, item.path, self._value(item, is_there=item.name in there))

    def item_of(self, value: Any) -> Item | None:
        """Return the item that a value is, if it is one and nobody has changed it."""
        item = self._items.get(_identity(value))
        if item is None:
            return None
        if not is_tensor(value):
            return item if self._known[id(value)] == outline(value, identify=id) else None
        is_whole = tuple(value.shape) == item.shape and value.dtype == item.dtype
        is_same = is_absent(value) or hash_whole(value) == self._hashes[_identity(value)]
        return item if is_whole and is_same else None

    def is_one(self, value: Any) -> bool:
        """Tell whether a value was one item, whatever it holds."""
        return _identity(value) in self._items

    def _value(self, item: Item, *, is_there: bool) -> Any:
        if item.dtype is None:
            value = _load(self._files, item.places[0])
            self._known[id(value)] = outline(value, identify=id)
        elif is_there:
            value = self._assembled(item)
            self._hashes[_identity(value)] = hash_whole(value)
        else:
            value = self._absent(item)
        self._items[_identity(value)] = item
        self._alive.append(value)
        return value

    def _absent(self, item: Item) -> torch.Tensor:
        import torch

        tensor = torch.empty(item.shape, dtype=item.dtype, device="meta")
        mark_absent(tensor.untyped_storage(), _Absent(self.needed, item.name))
        return tensor

    def _assembled(self, item: Item) -> torch.Tensor:
        import torch

        if len(item.places) == 1:
            return _checked(item, item.places[0], _load(self._files, item.places[0]))
        tensor = torch.empty(item.shape, dtype=item.dtype)
        for place in item.places:
            part = tensor
            for dim, (start, size) in enumerate(zip(place.starts, place.sizes, strict=True)):
                part = part.narrow(dim, start, size)
            part.copy_(_checked(item, place, _load(self._files, place)))
        return tensor


class _Absent:
    """Notes which tensors are wanted (see `absent.AbsentBytes`)."""

    def __init__(self, needed: set[str], name: str) -> None:
        self._needed = needed
        self._name = name

    def note(self) -> None:
        self._needed.add(self._name)

    def refuse(self) -> None:
        self.note()
        raise UnwritableCheckpoint(f"the bytes of {self._name} are not there", where=self._name)


class DistributedKind:
    """What can be done with a distributed checkpoint (see `recognition.Kind`)."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def plan(self, migrations: MigrationSet, options: RunOptions) -> Plan:
        """Plan a set; no bytes of tensors are read."""
        metadata = DistributedMetadata(self._files)
        _refuse_globals(self._files, metadata, options)
        return plan_ckpt(DistributedCheckpoint(self._files, metadata, ()).ckpt, migrations, options)

    def read(self, builder_of: Callable[..., Any]) -> Any:
        """Return the state dict, with the bytes of its tensors or without."""
        from migrate_ckpt.formats.tensors import MetaTensors

        metadata = DistributedMetadata(self._files)
        everything = [] if builder_of is MetaTensors else [item.name for item in metadata.items]
        self._opened = DistributedCheckpoint(self._files, metadata, everything)
        return self._opened.ckpt

    def written(self) -> set[str]:
        """Return nothing: what is in memory has no keys of storages."""
        return set()

    def inspect(self) -> Inspection:
        metadata = DistributedMetadata(self._files)
        ckpt = DistributedCheckpoint(self._files, metadata, ()).ckpt
        parts = [metadata.contents, *_parts(self._files, metadata)]
        contents = Contents(
            ckpt,
            max(part.protocol for part in parts),
            tuple(dict.fromkeys(path for part in parts for path in part.globals)),
            [call for part in parts for call in part.calls],
            [call for part in parts for call in part.hidden_calls],
        )
        return Inspection.of("distributed", _size(self._files, metadata), contents)

    def run(
        self,
        migrations: MigrationSet,
        options: RunOptions,
        *,
        in_place: bool,
        on_step: OnStep | None,
    ) -> NewSet:
        """Run a set, and lay out the result. In place or not, the old files keep their names."""
        metadata = DistributedMetadata(self._files)
        _refuse_globals(self._files, metadata, options)
        opened = DistributedCheckpoint(self._files, metadata, ())
        plan = plan_ckpt(opened.ckpt, migrations, options)
        ckpt: Any = opened.ckpt
        report = Report(plan, warnings=plan.warnings)
        if plan.has_work:
            loaded = load_migrations(migrations)
            opened, ckpt, report = _run(self._files, metadata, plan, loaded, on_step)
        refuse_unmet(migrations.manifest, ckpt, report)
        return _lay_out(self._files, opened, ckpt, report)


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
        if not opened.needed and not any(map(_is_made_of_nothing, _leaves(ckpt, opened))):
            return opened, ckpt, report
        there = there | opened.needed if opened.needed else everything


def _is_made_of_nothing(leaf: tuple[KeyPath, Any]) -> bool:
    """Tell whether a tensor was made of one whose bytes were not there."""
    return is_tensor(leaf[1]) and leaf[1].is_meta and not is_absent(leaf[1])


def _lay_out(files: Files, opened: DistributedCheckpoint, ckpt: Any, report: Report) -> NewSet:
    """Lay out the old files that something is left of, one of what is new, and the metadata."""
    name = NEW_FILE.format(tag_of(read_history(ckpt)))
    new = Pieces()
    items: list[Item] = []
    for path, value in _leaves(ckpt, opened):
        item = opened.item_of(value)
        if item is not None:
            items.append(opened.metadata.renamed(item, path))
            continue
        offset = new.size
        for piece in in_memory(*lay_out_new(value)):
            assert not isinstance(piece, Range), "all of it is in memory"
            new.add_bytes(piece)
        items.append(opened.metadata.new(path, value, name, offset, new.size - offset))
    used = {place.file for item in items for place in item.places}
    laid_out: list[NewFile] = []
    held: list[FileSource] = []
    for file in opened.metadata.files:
        if file in used:
            source = files.open(file)
            held.append(source)
            laid_out.append(NewFile(file, whole(source), source, is_as_it_was=True))
    if new.size:
        laid_out.append(NewFile(name, new, None))
    text = Pieces()
    if report.plan.has_work:
        text.add_bytes(opened.metadata.write(items))
    else:
        text.add_bytes(read_whole(files, METADATA_NAME, MAX_PICKLE_BYTES))
    before = _size(files, opened.metadata)
    target = {
        "format": "distributed",
        "size": sum(file.pieces.size for file in laid_out),
        "shards": len(laid_out),
        "written": [file.name for file in laid_out if not file.is_as_it_was],
    }
    source_facts = {
        "format": "distributed",
        "size": before,
        "shards": len(opened.metadata.files),
    }
    laid_out.append(NewFile(METADATA_NAME, text, None))
    report = replace(report, source=source_facts, target=target, bytes_verified=False)
    return NewSet(report, tuple(laid_out), opened.metadata.files, held, kept=ckpt)


def _leaves(
    value: Any, opened: DistributedCheckpoint, path: KeyPath = ()
) -> Iterator[tuple[KeyPath, Any]]:
    """Yield the values of a state dict with their paths, as torch flattens it; what was one item stays one."""
    is_history = path in ((ckpt_migration_key,), (records_key,))
    children: list[tuple[Any, Any]] = []
    if isinstance(value, Mapping):
        children = list(value.items())
    elif isinstance(value, list | tuple):
        children = list(enumerate(value))
    if not children or is_history or opened.is_one(value):
        yield path, value
    else:
        for name, child in children:
            yield from _leaves(child, opened, (*path, name))


def _put(ckpt: Any, path: KeyPath, value: Any) -> None:
    """Put a value at a path; what is on the way is made: a list where the next name is a position."""
    *above, last = path
    for name, following in zip(above, path[1:], strict=True):
        made: Any = [] if type(following) is int else {}
        if isinstance(ckpt, list):
            if type(name) is not int or name > len(ckpt):
                raise UnreadableCheckpoint(f"the paths of {METADATA_NAME} leave a hole in a list")
            if name == len(ckpt):
                ckpt.append(made)
            ckpt = ckpt[name]
        else:
            ckpt = ckpt.setdefault(name, made)
    if isinstance(ckpt, list):
        if last != len(ckpt):
            raise UnreadableCheckpoint(f"the paths of {METADATA_NAME} leave a hole in a list")
        ckpt.append(value)
    elif isinstance(ckpt, dict):
        ckpt[last] = value
    else:
        raise UnreadableCheckpoint(f"the paths of {METADATA_NAME} go through a value")


def _load(files: Files, place: Place) -> Any:
    """Read what stands in a part of a file, as `torch.save` has written it; nothing of it is imported."""
    from migrate_ckpt.formats.tensors import MappedTensors

    if not place.sizes and place.length > MAX_VALUE_BYTES:
        raise UnreadableCheckpoint(f"a value in {place.file} is longer than any that is known")
    container = _container(files, place)
    return container.read(MappedTensors(container)).value


def _container(files: Files, place: Place) -> Container:
    with files.open(place.file) as source:
        return open_container(Slice(source, place.offset, place.length))


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
    for item in metadata.items:
        for place in item.places:
            container = _container(files, place)
            yield container.read(OutlineTensors(container))


def _checked(item: Item, place: Place, value: Any) -> torch.Tensor:
    wanted = place.sizes or item.shape
    if not is_tensor(value) or value.dtype != item.dtype or tuple(value.shape) != tuple(wanted):
        raise UnreadableCheckpoint(
            f"{item.name!r:.80} in {place.file} is not what the metadata says"
        )
    tensor: torch.Tensor = value
    return tensor


def _identity(value: Any) -> int:
    return int(value.untyped_storage()._cdata) if is_tensor(value) else id(value)


def _size(files: Files, metadata: DistributedMetadata) -> int:
    sizes = files.sizes()
    return sum(sizes[file] for file in metadata.files)

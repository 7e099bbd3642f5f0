"""Runs a set of migrations on a `torch.distributed.checkpoint` folder as on one checkpoint.

Tensors are run over without their bytes, so that renaming a checkpoint of any size costs its metadata; those that an
operation reads, or all if a function wants to see them, are put together from their parts. What is new is written into
one more file; all other bytes stay where they are, and only `.metadata` says what they are called now.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from migrate_ckpt.absent import is_absent, mark_absent
from migrate_ckpt.changes import MAX_CHANGES
from migrate_ckpt.errors import (
    MigrationFailed,
    RequirementsNotMet,
    TargetExists,
    UnreadableCheckpoint,
    UnwritableCheckpoint,
)
from migrate_ckpt.file_run import RunOptions, lay_out_new
from migrate_ckpt.folder import MigrationSet
from migrate_ckpt.formats import open_container
from migrate_ckpt.formats.container import Contents
from migrate_ckpt.formats.pieces import (
    Pieces,
    Range,
    copy_range,
    replace_file,
    replace_file_by,
    whole,
    write_pieces,
)
from migrate_ckpt.formats.source import FileSource
from migrate_ckpt.history import ckpt_migration_key, read_history, records_key
from migrate_ckpt.inspection import Inspection
from migrate_ckpt.loader import load_migrations
from migrate_ckpt.operations.sections import is_tensor
from migrate_ckpt.outline import OutlineEntry, outline
from migrate_ckpt.plan import Plan, make_plan
from migrate_ckpt.preview import preview_plan
from migrate_ckpt.report import Report
from migrate_ckpt.runner import OnStep, run_plan
from migrate_ckpt.sharded.distributed_metadata import (
    METADATA_NAME,
    DistributedMetadata,
    Item,
    KeyPath,
    Place,
)
from migrate_ckpt.sharded.sharded_run import tag_of
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

    def __init__(self, folder: Path, metadata: DistributedMetadata, there: Collection[str]) -> None:
        """Read a folder; `there` are the names of the tensors to be read with their bytes."""
        self._folder = folder
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
        is_same = is_absent(value) or self._hash(value) == self._hashes[_identity(value)]
        return item if is_whole and is_same else None

    def is_one(self, value: Any) -> bool:
        """Tell whether a value was one item, whatever it holds."""
        return _identity(value) in self._items

    def _value(self, item: Item, *, is_there: bool) -> Any:
        if item.dtype is None:
            value = _load(self._folder, item.places[0])
            self._known[id(value)] = outline(value, identify=id)
        elif is_there:
            value = self._assembled(item)
            self._hashes[_identity(value)] = self._hash(value)
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
            return _checked(item, item.places[0], _load(self._folder, item.places[0]))
        tensor = torch.empty(item.shape, dtype=item.dtype)
        for place in item.places:
            part = tensor
            for dim, (start, size) in enumerate(zip(place.starts, place.sizes, strict=True)):
                part = part.narrow(dim, start, size)
            part.copy_(_checked(item, place, _load(self._folder, place)))
        return tensor

    def _hash(self, tensor: torch.Tensor) -> int:
        from migrate_ckpt.drafting.content_hashes import hash_whole

        return hash_whole(tensor)


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


def plan_distributed(
    folder: Path,
    migrations: MigrationSet,
    options: RunOptions,
    *,
    with_changes: bool = False,
    max_changes: int | None = MAX_CHANGES,
) -> Plan:
    """Plan a set for a distributed checkpoint; no bytes of its tensors are read, unless functions are tried out.

    Raises:
        What `plan_file` raises.
    """
    metadata = DistributedMetadata(folder)
    plan = _plan(DistributedCheckpoint(folder, metadata, ()).ckpt, migrations, options)
    if not with_changes or not plan.to_run:
        return plan
    loaded = load_migrations(migrations)
    return preview_plan(
        _AsOneFile(folder, metadata),
        plan,
        loaded,
        max_changes=max_changes,
        manifest=migrations.manifest,
    )


def inspect_distributed(folder: Path) -> Inspection:
    """Say what is in a distributed checkpoint, as `inspect_file` does of a file.

    Raises:
        UnreadableCheckpoint: It is damaged.
    """
    metadata = DistributedMetadata(folder)
    ckpt = DistributedCheckpoint(folder, metadata, ()).ckpt
    return Inspection.of("distributed", _size(folder, metadata.files), Contents(ckpt))


def migrate_distributed(
    folder: Path,
    target: Path,
    migrations: MigrationSet,
    options: RunOptions,
    *,
    force: bool = False,
    on_step: OnStep | None = None,
) -> Report:
    """Migrate a distributed checkpoint into another folder, or in place.

    Raises:
        TargetExists: Another one is in the target's place, and `force` is not set.
        UnwritableCheckpoint: The result holds what cannot be written, or another format was asked for.
        And what `migrate_file` raises. Then the old one is as it was, and there is no new one.
    """
    if options.format is not None:
        raise UnwritableCheckpoint(
            "a distributed checkpoint keeps its format: leave out the other one", where="format"
        )
    in_place = target.exists() and target.samefile(folder)
    if (target / METADATA_NAME).exists() and not in_place and not force:
        raise TargetExists(
            f"{target} exists already. Choose another target, or replace it with force.",
            path=target,
        )
    metadata = DistributedMetadata(folder)
    opened = DistributedCheckpoint(folder, metadata, ())
    plan = _plan(opened.ckpt, migrations, options)
    ckpt: Any = opened.ckpt
    report = Report(plan, warnings=plan.warnings)
    if plan.has_work:
        opened, ckpt, report = _run(folder, metadata, plan, load_migrations(migrations), on_step)
    refuse_unmet(migrations.manifest, ckpt, report)
    source = _facts(folder, metadata.files)
    if in_place and not plan.has_work:
        return replace(report, source=source, target={**source, "written": []})
    target.mkdir(parents=True, exist_ok=True)
    items = _write_new(opened, ckpt, target)
    written = {place.file for item in items for place in item.places} - set(metadata.files)
    _finish(folder, target, metadata, items, in_place=in_place)
    files = tuple(dict.fromkeys(place.file for item in items for place in item.places))
    return replace(
        report,
        source=source,
        target={**_facts(target, files), "written": sorted(written)},
        bytes_verified=False,
    )


def _plan(ckpt: Mapping[str, Any], migrations: MigrationSet, options: RunOptions) -> Plan:
    return make_plan(
        migrations.files,
        read_history(ckpt),
        set_name=migrations.name,
        set_digest=migrations.digest,
        to=options.to,
        policy=options.policy,
        allow_unknown_history=options.allow_unknown_history,
    )


def _run(
    folder: Path,
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
        opened = DistributedCheckpoint(folder, metadata, there)
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


def _write_new(opened: DistributedCheckpoint, ckpt: Any, target: Path) -> list[Item]:
    """Write what is new into one more file, and return all items."""
    kept: list[tuple[KeyPath, Any, Item | None]] = [
        (path, value, opened.item_of(value)) for path, value in _leaves(ckpt, opened)
    ]
    name = NEW_FILE.format(tag_of(read_history(ckpt)))
    items: list[Item] = []

    def write(descriptor: int) -> None:
        for path, value, item in kept:
            if item is not None:
                items.append(opened.metadata.renamed(item, path))
                continue
            offset = os.lseek(descriptor, 0, os.SEEK_CUR)
            pieces, source = lay_out_new(value)
            write_pieces(pieces, source, descriptor)
            items.append(opened.metadata.new(path, value, name, offset, pieces.size))

    if any(item is None for _, _, item in kept):
        replace_file_by(target / name, write)
    else:
        write(-1)
    return items


def _finish(
    folder: Path, target: Path, metadata: DistributedMetadata, items: list[Item], *, in_place: bool
) -> None:
    """Bring the other files there, then the metadata; in place, take away what nothing is left of."""
    used = {place.file for item in items for place in item.places}
    if not in_place:
        for file in used & set(metadata.files):
            with FileSource(folder / file) as source:
                replace_file(target / file, whole(source), source)
    text = Pieces()
    text.add_bytes(metadata.write(items))
    replace_file(target / METADATA_NAME, text, None)
    if in_place:
        for file in set(metadata.files) - used:
            (target / file).unlink()


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


def _load(folder: Path, place: Place) -> Any:
    """Read what stands in a part of a file, as `torch.save` has written it; nothing of it is imported."""
    from migrate_ckpt.formats.tensors import MappedTensors

    if not place.sizes and place.length > MAX_VALUE_BYTES:
        raise UnreadableCheckpoint(f"a value in {place.file} is longer than any that is known")
    descriptor = os.memfd_create(place.file[:100])
    try:
        with FileSource(folder / place.file) as source:
            copy_range(source, Range(place.offset, place.length), descriptor)
        opened = FileSource(descriptor)
    finally:
        os.close(descriptor)
    container = open_container(opened)
    return container.read(MappedTensors(container)).value


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


def _facts(folder: Path, files: Collection[str]) -> dict[str, Any]:
    return {"format": "distributed", "size": _size(folder, files), "shards": len(files)}


def _size(folder: Path, files: Collection[str]) -> int:
    return sum((folder / file).stat().st_size for file in files)


class _AsOneFile:
    """A distributed checkpoint for those who try migrations out on one file."""

    def __init__(self, folder: Path, metadata: DistributedMetadata) -> None:
        self._folder = folder
        self._metadata = metadata

    def read(self, builder_of: Callable[..., Any]) -> Any:
        from migrate_ckpt.formats.tensors import MetaTensors

        there = set() if builder_of is MetaTensors else {item.name for item in self._metadata.items}
        self._opened = DistributedCheckpoint(self._folder, self._metadata, there)
        return self._opened.ckpt

    def written(self) -> set[str]:
        """Return nothing: what is in memory has no keys of storages."""
        return set()

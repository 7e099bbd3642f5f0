"""Runs a set of migrations on a sharded checkpoint as on one, and lays out the shards that change.

A tensor stays in the shard that it was in; one that was made goes to that of the tensor before it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from typing import Any

from migrate_ckpt.errors import UnwritableCheckpoint
from migrate_ckpt.file_run import RunOptions, plan_history
from migrate_ckpt.folder import MigrationSet
from migrate_ckpt.formats.allowed_globals import refuse_globals
from migrate_ckpt.formats.container import Container, Contents
from migrate_ckpt.formats.conversion import lay_out_as
from migrate_ckpt.formats.pieces import Pieces, whole
from migrate_ckpt.formats.verification import Verification
from migrate_ckpt.history import History, read_history, remove_history, write_history
from migrate_ckpt.inspection import Inspection
from migrate_ckpt.loader import load_migrations
from migrate_ckpt.operations.moves import identity, list_keys
from migrate_ckpt.operations.sections import is_history, is_tensor
from migrate_ckpt.plan import Plan
from migrate_ckpt.report import Report
from migrate_ckpt.runner import OnStep, run_plan
from migrate_ckpt.sharded.files import Files
from migrate_ckpt.sharded.index_file import index_text, named_by_index
from migrate_ckpt.sharded.names import FreeNames
from migrate_ckpt.sharded.new_set import NewFile, NewSet, with_facts
from migrate_ckpt.sharded.shards import Shard, ShardedCheckpoint, open_sharded, take_history
from migrate_ckpt.verifying import refuse_unmet


class ShardedKind:
    """What can be done with a sharded checkpoint of Hugging Face's kind (see `kind.Kind`)."""

    def __init__(self, files: Files, name: str) -> None:
        self._files = files
        self._name = name

    def names(self) -> frozenset[str]:
        return named_by_index(self._files, self._name)

    def plan(self, migrations: MigrationSet, options: RunOptions) -> Plan:
        """Plan a set; loads no torch, and reads no tensor."""
        from migrate_ckpt.formats.outline_tensors import OutlineTensors

        with open_sharded(self._files, self._name) as opened:
            opened.read(OutlineTensors)
            _refuse_globals(opened, options)
            return plan_history(read_history(opened.ckpt), migrations, options)

    def read(self, builder_of: Callable[[Container], Any]) -> Any:
        """Return the state dict; its tensors keep the files open that they are mapped from."""
        opened = open_sharded(self._files, self._name)
        opened.read(builder_of)
        return opened.ckpt

    def written(self) -> set[str]:
        """Return nothing: keys of storages are those of one shard, and say nothing of another's."""
        return set()

    def inspect(self) -> Inspection:
        from migrate_ckpt.formats.outline_tensors import OutlineTensors

        with open_sharded(self._files, self._name) as opened:
            opened.read(OutlineTensors)
            contents = Contents.joined(opened.ckpt, [shard.contents for shard in opened.shards])
            return Inspection.of(opened.format, opened.size, contents)

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
        # Loading torch takes a second, which a plan need not wait.
        from migrate_ckpt.formats.tensors import MappedTensors

        opened = open_sharded(self._files, self._name)
        try:
            opened.read(MappedTensors)
            return _run(
                opened, migrations, options, in_place=in_place, taken=taken, on_step=on_step
            )
        except BaseException:
            opened.close()
            raise


def _run(
    opened: ShardedCheckpoint,
    migrations: MigrationSet,
    options: RunOptions,
    *,
    in_place: bool,
    taken: Collection[str],
    on_step: OnStep | None,
) -> NewSet:
    _refuse_globals(opened, options)
    shards_of = _shards_of(opened)
    plan = plan_history(read_history(opened.ckpt), migrations, options)
    ckpt: Any = opened.ckpt
    report = Report(plan, warnings=plan.warnings)
    if plan.has_work:
        ckpt, report = run_plan(ckpt, plan, load_migrations(migrations), on_step=on_step)
    ckpt = _as_state_dict(ckpt)
    refuse_unmet(migrations.manifest, ckpt, report)
    history = take_history(ckpt)
    keys = _keys_by_shard(opened, ckpt, shards_of)
    free = FreeNames(taken, history)
    files = [
        _new_file(shard, keys[number], ckpt, free, in_place=in_place)
        for number, shard in enumerate(opened.shards)
        if keys[number]
    ]
    names = {
        key: file.name
        for file, found in zip(files, filter(None, keys), strict=True)
        for key in found
    }
    is_same = not plan.has_work and [file.name for file in files] == list(opened.index.shards)
    text = _whole_index(opened) if is_same else _index(opened, ckpt, names, history)
    source = {"format": opened.format, "size": opened.size, "shards": len(opened.shards)}
    report = with_facts(report, source, files, bytes_verified=_verify(opened, files))
    files.append(NewFile(opened.index.name, text, None))
    return NewSet(report, tuple(files), opened.index.shards, [opened], kept=ckpt)


def _refuse_globals(opened: ShardedCheckpoint, options: RunOptions) -> None:
    for shard in opened.shards:
        refuse_globals(shard.contents, options.allowed_globals)


def _as_state_dict(ckpt: Any) -> Any:
    others = [key for key in ckpt if not is_tensor(ckpt[key]) and not is_history(key)]
    if others or not isinstance(ckpt, OrderedDict):
        raise UnwritableCheckpoint(
            f"a sharded checkpoint holds tensors by name and nothing else, and not {list_keys(map(str, others), 3)}",
            where=str(others[0])[:80] if others else "",
        )
    return ckpt


def _shards_of(opened: ShardedCheckpoint) -> dict[int, int]:
    """Return the number of the shard that each storage is of."""
    return {
        opened.ckpt[key].untyped_storage()._cdata: number
        for number, shard in enumerate(opened.shards)
        for key in shard.keys
        if is_tensor(opened.ckpt[key])
    }


def _keys_by_shard(
    opened: ShardedCheckpoint, ckpt: Mapping[str, Any], shards_of: Mapping[int, int]
) -> list[list[str]]:
    keys: list[list[str]] = [[] for _ in opened.shards]
    number = 0
    for key, tensor in ckpt.items():
        number = shards_of.get(tensor.untyped_storage()._cdata, number)
        keys[number].append(key)
    return keys


def _new_file(
    shard: Shard, keys: list[str], ckpt: Mapping[str, Any], free: FreeNames, *, in_place: bool
) -> NewFile:
    source, before = shard.container.source, shard.contents.value
    is_same = set(keys) == set(shard.keys) and all(
        identity(ckpt[key]) == identity(before[key]) for key in keys
    )
    if is_same and not shard.container.mapped.changed(shard.container.storages):
        name = shard.name if in_place else free.of(shard.name)
        return NewFile(name, whole(source), source, is_as_it_was=True)
    part: OrderedDict[str, Any] = OrderedDict((key, ckpt[key]) for key in keys)
    if isinstance(before, OrderedDict) and "_metadata" in vars(before):
        vars(part)["_metadata"] = vars(ckpt).get("_metadata", OrderedDict())
    pieces, _, _ = lay_out_as(part, shard.container, shard.contents.protocol, None)
    return NewFile(free.of(shard.name), pieces, source)


def _verify(opened: ShardedCheckpoint, files: list[NewFile]) -> bool:
    """Compare the checksums of the shards that are written anew; tells whether all of their bytes have one.

    Raises:
        UnreadableCheckpoint: One is damaged.
    """
    written = {id(file.source) for file in files if not file.is_as_it_was}
    says_all = [
        Verification(shard.container.source, shard.container.checksums).finish()
        for shard in opened.shards
        if id(shard.container.source) in written
    ]
    return bool(says_all) and all(says_all)


def _whole_index(opened: ShardedCheckpoint) -> Pieces:
    pieces = Pieces()
    with opened.files.open(opened.index.name) as source:
        pieces.add_bytes(source.read(0, source.size))
    return pieces


def _index(
    opened: ShardedCheckpoint, ckpt: Mapping[str, Any], names: Mapping[str, str], history: History
) -> Pieces:
    metadata = dict(opened.index.metadata)
    tensors = {identity(tensor): tensor for tensor in ckpt.values()}
    counts = {
        "total_size": sum(t.numel() * t.element_size() for t in tensors.values()),
        "total_parameters": sum(t.numel() for t in tensors.values()),
    }
    metadata.update({name: count for name, count in counts.items() if name in metadata})
    remove_history(metadata)
    if history.names:
        write_history(metadata, history, in_metadata=False)
    pieces = Pieces()
    pieces.add_bytes(index_text({key: names[key] for key in ckpt}, metadata))
    return pieces

"""Runs a set of migrations on a sharded checkpoint as on one, and writes the shards that change.

A tensor stays in the shard that it was in; one that was made goes to that of the tensor before it. In another folder
the shards keep their names, and those that did not change are copied by the kernel. In place, shards that change get
new names, and the old ones go once the index names the new: whoever is ended in between has left the old set whole.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from migrate_ckpt.changes import MAX_CHANGES
from migrate_ckpt.errors import TargetExists, UnwritableCheckpoint
from migrate_ckpt.file_run import RunOptions
from migrate_ckpt.folder import MigrationSet
from migrate_ckpt.formats.container import Container, Contents
from migrate_ckpt.formats.conversion import lay_out_as
from migrate_ckpt.formats.pieces import Pieces, replace_file, whole
from migrate_ckpt.formats.verification import Verification
from migrate_ckpt.history import History, read_history, remove_history, write_history
from migrate_ckpt.inspection import Inspection
from migrate_ckpt.loader import load_migrations
from migrate_ckpt.operations.moves import identity
from migrate_ckpt.operations.sections import is_tensor
from migrate_ckpt.plan import Plan, make_plan
from migrate_ckpt.preview import preview_plan
from migrate_ckpt.report import Report
from migrate_ckpt.runner import OnStep, run_plan
from migrate_ckpt.sharded.index_file import SUFFIX, index_text
from migrate_ckpt.sharded.shards import Shard, ShardedCheckpoint, open_sharded, take_history
from migrate_ckpt.verifying import refuse_unmet

_TAG = re.compile(r"\.m[0-9a-f]{8}(?=\.[^.]+$)")


@dataclass(frozen=True, slots=True)
class _Written:
    """A shard of the new set; without pieces it is as it was."""

    shard: Shard
    keys: tuple[str, ...]
    pieces: Pieces | None


def plan_sharded(
    index: Path,
    migrations: MigrationSet,
    options: RunOptions,
    *,
    with_changes: bool = False,
    max_changes: int | None = MAX_CHANGES,
) -> Plan:
    """Plan a set for a sharded checkpoint. Without the changes it loads no torch, and reads no tensor.

    Raises:
        What `plan_file` raises.
    """
    from migrate_ckpt.formats.outline_tensors import OutlineTensors

    with open_sharded(index) as opened:
        opened.read(OutlineTensors)
        plan = _plan(opened, migrations, options)
    if not with_changes or not plan.to_run:
        return plan
    loaded = load_migrations(migrations)
    return preview_plan(
        AsOneFile(index), plan, loaded, max_changes=max_changes, manifest=migrations.manifest
    )


def inspect_sharded(index: Path) -> Inspection:
    """Say what is in a sharded checkpoint, as `inspect_file` does of a file.

    Raises:
        UnreadableCheckpoint: It is damaged, or its index is.
    """
    from migrate_ckpt.formats.outline_tensors import OutlineTensors

    with open_sharded(index) as opened:
        opened.read(OutlineTensors)
        parts = [shard.contents for shard in opened.shards]
        contents = Contents(
            opened.ckpt,
            max(part.protocol for part in parts),
            tuple(dict.fromkeys(path for part in parts for path in part.globals)),
            [call for part in parts for call in part.calls],
            [call for part in parts for call in part.hidden_calls],
        )
        return Inspection.of(opened.format, opened.size, contents)


class AsOneFile:
    """A sharded checkpoint for those who try migrations out on one file."""

    def __init__(self, index: Path) -> None:
        self._index = index

    def read(self, builder_of: Callable[[Container], Any]) -> Any:
        # The tensors keep the files open that they are mapped from.
        opened = open_sharded(self._index)
        opened.read(builder_of)
        return opened.ckpt

    def written(self) -> set[str]:
        """Return nothing: keys of storages are those of one shard, and say nothing of another's."""
        return set()


def migrate_sharded(
    index: Path,
    target: Path,
    migrations: MigrationSet,
    options: RunOptions,
    *,
    force: bool = False,
    on_step: OnStep | None = None,
) -> Report:
    """Migrate a sharded checkpoint into another folder, or in place.

    Args:
        index: Its index.
        target: The folder of the new set, or the path of its index.
        migrations: The migrations.
        options: As for one file; another format is refused.
        force: Whether a set that is in the target's place is replaced.
        on_step: As for `migrate_file`.

    Raises:
        TargetExists: Another set is in the target's place, and `force` is not set.
        UnwritableCheckpoint: The result is no state dict of tensors, or another format was asked for.
        And what `migrate_file` raises. Then the old set is as it was, and there is no new one.
    """
    if options.format is not None:
        raise UnwritableCheckpoint(
            "a sharded checkpoint keeps its format: leave out the other one", where="format"
        )
    folder = target.parent if target.name.endswith(SUFFIX) else target
    in_place = folder.exists() and folder.samefile(index.parent)
    new_index = folder / (target.name if target.name.endswith(SUFFIX) else index.name)
    if new_index.exists() and not in_place and not force:
        raise TargetExists(
            f"{new_index} exists already. Choose another target, or replace it with force.",
            path=new_index,
        )
    # Loading torch takes a second, which a plan need not wait.
    from migrate_ckpt.formats.tensors import MappedTensors

    with open_sharded(index) as opened:
        opened.read(MappedTensors)
        shards_of = _shards_of(opened)
        plan = _plan(opened, migrations, options)
        ckpt: Any = opened.ckpt
        report = Report(plan, warnings=plan.warnings)
        if plan.has_work:
            ckpt, report = run_plan(ckpt, plan, load_migrations(migrations), on_step=on_step)
        ckpt = _as_state_dict(ckpt)
        refuse_unmet(migrations.manifest, ckpt, report)
        source = {"format": opened.format, "size": opened.size, "shards": len(opened.shards)}
        if in_place and not plan.has_work:
            return replace(report, source=source, target={**source, "written": []})
        history = take_history(ckpt)
        written = _lay_out(opened, ckpt, shards_of)
        verified = _verify(written)
        folder.mkdir(parents=True, exist_ok=True)
        names = _write(opened, written, folder, new_index, ckpt, history, in_place=in_place)
        return replace(
            report,
            source=source,
            target={
                "format": opened.format,
                "size": sum((folder / name).stat().st_size for name in names.values()),
                "shards": len(names),
                "written": [
                    names[w.shard.name] for w in written if w.keys and w.pieces is not None
                ],
            },
            bytes_verified=verified,
        )


def _plan(opened: ShardedCheckpoint, migrations: MigrationSet, options: RunOptions) -> Plan:
    return make_plan(
        migrations.files,
        read_history(opened.ckpt),
        set_name=migrations.name,
        set_digest=migrations.digest,
        to=options.to,
        policy=options.policy,
        allow_unknown_history=options.allow_unknown_history,
    )


def _as_state_dict(ckpt: Any) -> Any:
    others = [key for key, value in ckpt.items() if not is_tensor(value)]
    if others or not isinstance(ckpt, OrderedDict):
        raise UnwritableCheckpoint(
            f"a sharded checkpoint holds tensors by name and nothing else, and the migrations made {others[:3]} of it",
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


def _lay_out(
    opened: ShardedCheckpoint, ckpt: Mapping[str, Any], shards_of: Mapping[int, int]
) -> list[_Written]:
    keys: list[list[str]] = [[] for _ in opened.shards]
    number = 0
    for key, tensor in ckpt.items():
        number = shards_of.get(tensor.untyped_storage()._cdata, number)
        keys[number].append(key)
    return [
        _lay_out_one(opened, shard, tuple(keys[number]), ckpt)
        for number, shard in enumerate(opened.shards)
    ]


def _lay_out_one(
    opened: ShardedCheckpoint, shard: Shard, keys: tuple[str, ...], ckpt: Mapping[str, Any]
) -> _Written:
    before = shard.contents.value
    is_same = set(keys) == set(shard.keys) and all(
        identity(ckpt[key]) == identity(before[key]) for key in keys
    )
    if is_same and not shard.container.mapped.changed(shard.container.storages):
        return _Written(shard, keys, None)
    if not keys:
        return _Written(shard, (), Pieces())
    part: OrderedDict[str, Any] = OrderedDict((key, ckpt[key]) for key in keys)
    if isinstance(before, OrderedDict) and "_metadata" in vars(before):
        vars(part)["_metadata"] = vars(ckpt).get("_metadata", OrderedDict())
    pieces, _, _ = lay_out_as(part, shard.container, shard.contents.protocol, None)
    return _Written(shard, keys, pieces)


def _verify(written: list[_Written]) -> bool:
    """Compare the checksums of the shards that are written anew; tells whether all of their bytes have one.

    Raises:
        UnreadableCheckpoint: One is damaged.
    """
    says_all = [
        Verification(each.shard.container.source, each.shard.container.checksums).finish()
        for each in written
        if each.pieces is not None
    ]
    return bool(says_all) and all(says_all)


def _write(
    opened: ShardedCheckpoint,
    written: list[_Written],
    folder: Path,
    new_index: Path,
    ckpt: Mapping[str, Any],
    history: History,
    *,
    in_place: bool,
) -> dict[str, str]:
    """Write the shards, then the index; return the new names of the old shards that are left."""
    tag = tag_of(history)
    names: dict[str, str] = {}
    for each in written:
        source, name = each.shard.container.source, each.shard.name
        if not each.keys:
            continue
        if each.pieces is None:
            names[name] = name
            if not in_place:
                replace_file(folder / name, whole(source), source)
            continue
        names[name] = _tagged(name, tag) if in_place else name
        replace_file(folder / names[name], each.pieces, source)
    weight_map = {key: names[each.shard.name] for each in written for key in each.keys}
    in_order = {key: weight_map[key] for key in ckpt}
    text = Pieces()
    text.add_bytes(index_text(in_order, _metadata(opened, ckpt, history)))
    replace_file(new_index, text, None)
    if in_place:
        for name in set(opened.index.shards) - set(names.values()):
            (folder / name).unlink()
    return names


def _metadata(
    opened: ShardedCheckpoint, ckpt: Mapping[str, Any], history: History
) -> dict[str, Any]:
    metadata = dict(opened.index.metadata)
    tensors = {identity(tensor): tensor for tensor in ckpt.values()}
    counts = {
        "total_size": sum(t.numel() * t.element_size() for t in tensors.values()),
        "total_parameters": sum(t.numel() for t in tensors.values()),
    }
    metadata.update({name: count for name, count in counts.items() if name in metadata})
    remove_history(metadata)
    return dict(write_history(metadata, history, in_metadata=False)) if history.names else metadata


def tag_of(history: History) -> str:
    """Return what tells the files of one state of the set from those of another."""
    records = [[record.name, record.set, record.digest] for record in history.records]
    return hashlib.sha256(json.dumps(records).encode()).hexdigest()[:8]


def _tagged(name: str, tag: str) -> str:
    stem, dot, suffix = _TAG.sub("", name).rpartition(".")
    return f"{stem}.m{tag}{dot}{suffix}"

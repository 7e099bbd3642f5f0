"""Compares two checkpoints, state dicts or manifests, and drafts the migration that makes one of the other."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from migrate_ckpt.drafting.composing import compose
from migrate_ckpt.drafting.draft import Draft
from migrate_ckpt.drafting.labels import label_of
from migrate_ckpt.drafting.matching import match_tensors
from migrate_ckpt.drafting.notes import find_notes
from migrate_ckpt.drafting.others import pair_others
from migrate_ckpt.drafting.proof import find_differing
from migrate_ckpt.drafting.sides import Side, open_side
from migrate_ckpt.drafting.trial import Drafted
from migrate_ckpt.drafting.values import ValueChanges, compare_values
from migrate_ckpt.operations.paths import Path as KeyPath
from migrate_ckpt.operations.paths import PathLike, to_path
from migrate_ckpt.operations.state_dict_operation import StateDictOperation
from migrate_ckpt.operations.values import Move, RenameValue


def draft_migration(
    old: str | os.PathLike[str],
    new: str | os.PathLike[str],
    *,
    section: PathLike | None = None,
) -> Draft:
    """Draft the migration that makes a new checkpoint of an old one.

    Each side is a checkpoint, in one file or sharded, a file of a state dict, or a manifest (`.json`). Equal content
    proves what became of a tensor, if no other has it; else names and shapes make it likely; and what could be one or
    another is left to a person. What the operations make of the old state dict is compared with the new one, bit by
    bit. Nothing of either file is imported, and no more than a tensor at a time is in memory. torch works in one thread
    meanwhile.

    Args:
        old: The file of before.
        new: The file of after.
        section: The path of the state dict in both; None is the model's, wherever that stands.

    Raises:
        OSError: A file cannot be opened.
        UnreadableCheckpoint: One is no checkpoint that is read here, or it is damaged.
        InvalidManifest: A `.json` is no manifest, or leaves a size open.
        SectionNotFound: One has no such section; or which is the model's is not to be told.
    """
    with (
        _one_thread(),
        open_side(Path(old), section) as before,
        open_side(Path(new), section) as after,
    ):
        has_content = before.has_content and after.has_content
        match = match_tensors(before.tensors, after.tensors)
        unknown = pair_others(
            match, *(_labels(side.others, has_content) for side in (before, after))
        )
        composed = compose(match, before.state_dict, after.state_dict)
        differing = find_differing(
            composed.state_dict_operations, before.state_dict, after.state_dict
        )
        around, changes = _around(before, after)
        place = () if section is None else to_path(section)
        return Draft(
            (*around, *(_in_section(d, place) for d in composed.drafted), *changes.drafted),
            len(match.kept - set(match.changed)),
            has_content,
            undecided=tuple(composed.undecided),
            unknown=tuple(match.unknown),
            changed=tuple(match.changed),
            notes=(*find_notes(before, after, match, composed, unknown), *changes.notes),
            differing=tuple(differing),
        )


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch work in one thread.

    It is asked for many small steps, at each of which its threads wait for each other: little is gained where nothing
    else runs, and ten times as long is waited where something does.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _labels(values: Mapping[str, Any], has_content: bool) -> dict[str, Hashable]:
    return {key: label_of(value) if has_content else None for key, value in values.items()}


def _around(before: Side, after: Side) -> tuple[list[Drafted], ValueChanges]:
    """Compare what is around the state dicts, where both have anything."""
    if not before.path or not after.path:
        return [], ValueChanges()
    drafted = []
    if before.path != after.path:
        same_parent = before.path[:-1] == after.path[:-1]
        operation = (
            RenameValue(before.path, after.path[-1])
            if same_parent
            else Move(before.path, after.path)
        )
        drafted.append(Drafted(operation, 1))
    return drafted, compare_values(before.ckpt, after.ckpt, (before.path, after.path))


def _in_section(drafted: Drafted, place: KeyPath) -> Drafted:
    if not place or not isinstance(drafted.operation, StateDictOperation):
        return drafted
    return replace(drafted, operation=replace(drafted.operation, section=(place,)))

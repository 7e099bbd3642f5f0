"""Compares two checkpoints, state dicts or manifests, and drafts the migration that makes one of the other."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from migrate_ckpt.drafting.braces import Group, has_brace
from migrate_ckpt.drafting.composing import Drafted, compose
from migrate_ckpt.drafting.draft import Draft
from migrate_ckpt.drafting.labels import is_dense, label_of
from migrate_ckpt.drafting.matching import match_tensors
from migrate_ckpt.drafting.others import UNKNOWN, forms_of, pair_others
from migrate_ckpt.drafting.proof import find_differing
from migrate_ckpt.drafting.ties import find_ties
from migrate_ckpt.drafting.values import ValueChanges, compare_values
from migrate_ckpt.errors import InvalidManifest
from migrate_ckpt.file_run import as_checkpoint, read_tensors
from migrate_ckpt.formats import open_container
from migrate_ckpt.formats.source import FileSource
from migrate_ckpt.manifest import Manifest, read_manifest
from migrate_ckpt.operations.moves import list_keys
from migrate_ckpt.operations.paths import Path as KeyPath
from migrate_ckpt.operations.paths import PathLike, show_path, to_path
from migrate_ckpt.operations.sections import find_sections, own_keys, to_sections
from migrate_ckpt.operations.state_dict_operation import StateDictOperation
from migrate_ckpt.operations.values import Move, RenameValue
from migrate_ckpt.optimizers.states import find_optimizers
from migrate_ckpt.sharded.index_file import SUFFIX
from migrate_ckpt.sharded.recognition import sharded_folder

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class _Side:
    """One of two things that are compared: its dense tensors by key, its other values, and all of it, if it is a file.

    Attributes:
        tensors: The dense tensors of the state dict.
        others: What else is in it; UNKNOWN where only the name is known.
        ckpt: The checkpoint.
        path: Where the state dict stands in it.
    """

    tensors: Mapping[str, torch.Tensor]
    others: Mapping[str, Any]
    ckpt: Any = None
    path: KeyPath | None = None

    @property
    def has_content(self) -> bool:
        is_known = not any(value is UNKNOWN for value in self.others.values())
        return is_known and not any(tensor.is_meta for tensor in self.tensors.values())

    @property
    def state_dict(self) -> dict[str, Any]:
        return {**self.tensors, **self.others}


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
        _opened(Path(old), section) as before,
        _opened(Path(new), section) as after,
    ):
        has_content = before.has_content and after.has_content
        match = match_tensors(before.tensors, after.tensors)
        unknown = pair_others(
            match, *(_labels(side.others, has_content) for side in (before, after))
        )
        drafted, undecided = compose(match, before.state_dict, after.state_dict)
        operations = [d.operation for d in drafted if isinstance(d.operation, StateDictOperation)]
        differing = find_differing(operations, before.state_dict, after.state_dict)
        around, changes = _around(before, after)
        place = () if section is None else to_path(section)
        return Draft(
            (*around, *(_in_section(d, place) for d in drafted), *changes.drafted),
            len(match.kept - set(match.changed)),
            has_content,
            undecided=tuple(undecided),
            unknown=tuple(match.unknown),
            changed=tuple(match.changed),
            notes=(
                *_notes(before, after, unknown, undecided),
                *_of_order(before, after, operations),
                *(find_ties(match, before.tensors, after.tensors) if has_content else ()),
                *changes.notes,
            ),
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


@contextlib.contextmanager
def _opened(path: Path, section: PathLike | None) -> Iterator[_Side]:
    if path.suffix == ".json" and not path.name.endswith(SUFFIX):
        yield _of_manifest(path, read_manifest(path))
        return
    sharded = sharded_folder(path)
    if sharded is not None:
        # Loading torch takes a second, which those who only import this need not wait.
        from migrate_ckpt.formats.tensors import MappedTensors

        yield _of_ckpt(sharded.kind.read(MappedTensors), section)
        return
    with FileSource(path) as source:
        yield _of_ckpt(as_checkpoint(read_tensors(open_container(source)).value), section)


def _of_ckpt(ckpt: Any, section: PathLike | None) -> _Side:
    ((place, state_dict),) = find_sections(ckpt, to_sections(section))
    dense = {key: state_dict[key] for key in own_keys(state_dict) if is_dense(state_dict[key])}
    others = {key: state_dict[key] for key in own_keys(state_dict) if key not in dense}
    return _Side(dense, others, ckpt, place)


def _of_manifest(path: Path, manifest: Manifest) -> _Side:
    import torch

    tensors = {}
    for key, expected in manifest.tensors.items():
        sizes = [size for size in expected.shape if size is not None]
        dtype = getattr(torch, expected.dtype, None)
        if len(sizes) < len(expected.shape) or not isinstance(dtype, torch.dtype):
            raise InvalidManifest(
                f"The manifest {path.name} cannot be compared: of {key!r} it says {expected}, and it takes a size for "
                "each dimension and a dtype of torch.",
                path=path,
            )
        tensors[key] = torch.empty(sizes, dtype=dtype, device="meta")
    return _Side(tensors, dict.fromkeys(manifest.values, UNKNOWN))


def _labels(values: Mapping[str, Any], has_content: bool) -> dict[str, Hashable]:
    return {key: label_of(value) if has_content else None for key, value in values.items()}


def _around(before: _Side, after: _Side) -> tuple[list[Drafted], ValueChanges]:
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


def _notes(
    before: _Side, after: _Side, unknown: Sequence[str], undecided: Sequence[Group]
) -> Iterator[str]:
    """Yield a sentence for what no operation is written for."""
    for bare, held, verb in ((before, after, "wrap"), (after, before, "unwrap")):
        if bare.path == () and held.path:
            one, other = ("old", "new") if bare is before else ("new", "old")
            hint = (
                f": if that is meant, add {verb}({held.path[0]!r})" if len(held.path) == 1 else ""
            )
            yield (
                f"The {one} file is a state dict itself, and the {other} one holds it under "
                f"{show_path(held.path)!r}{hint}."
            )
    if any(has_brace(key) for group in undecided for keys in group for key in keys):
        yield "A template cannot name keys with braces in them, but a compiled regex can."
    numbers = [_other_names(side.ckpt, side.path) for side in (before, after)]
    if numbers[0] != numbers[1]:
        yield f"Keys that are no text are not compared: {list_keys(sorted(numbers[0] ^ numbers[1]))}."
    if unknown:
        yield f"No dense tensors, and only in the new state dict: {list_keys(sorted(unknown))}."


def _of_order(
    before: _Side, after: _Side, operations: Sequence[StateDictOperation]
) -> Iterator[str]:
    """Yield a sentence where the order of the keys is not the new one, and may matter."""
    if not all(
        side.ckpt is not None and find_optimizers(side.ckpt, []) for side in (before, after)
    ):
        return
    made = forms_of(before.tensors)
    for operation in operations:
        operation(made)
    if [key for key in made if key in after.tensors] != [
        key for key in after.tensors if key in made
    ]:
        yield (
            "There is an optimizer, whose states may go by position, and the new state dict has its keys in another "
            "order. If that is the order of the parameters, say it: optimizer = follow(order_after=[...])."
        )


def _other_names(ckpt: Any, path: KeyPath | None) -> set[str]:
    """Return the keys of a state dict that are no text, as texts."""
    if path is None:
        return set()
    ((_, state_dict),) = find_sections(ckpt, (path,))
    return {repr(key) for key in state_dict if type(key) is not str}

"""Writes a sequence of operations as a shorter one that does the same.

Two operations become one, or none, where the second goes on from what the first made: renames of renames, what is added
and dropped, what is done and undone. What stands between them must concern other keys, or they stay.

A template that gives names is taken to give them where no others were: one that renames `a.{i}` to `b.{i}`, and another
that renames `b.{i}` to `c.{i}`, become `a.{i}` to `c.{i}`, and a `b.7` that had been there before would be left.
Without that no two renames of layers could become one. `templates_left_out` says where it was taken for granted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

from migrate_ckpt.errors import NotInvertible
from migrate_ckpt.operations.classes import RenameClass
from migrate_ckpt.operations.contents import Add, Drop
from migrate_ckpt.operations.operation import Operation
from migrate_ckpt.operations.patterns import KeyPattern, is_exact
from migrate_ckpt.operations.reindexing import Reindex
from migrate_ckpt.operations.renaming import Rename, StripPrefix
from migrate_ckpt.operations.sections import MODEL_SECTIONS
from migrate_ckpt.operations.state_dict_operation import StateDictOperation
from migrate_ckpt.operations.values import DropValue, PathOperation, RenameValue, SetValue
from migrate_ckpt.squashing.keys_concerned import keys_given, keys_left, keys_of, keys_taken
from migrate_ckpt.squashing.patterns_apart import is_same, may_meet, numbered, renamed_as

Merged: TypeAlias = "list[Operation] | None"
"""What two operations become; None where they stay two."""


def merge(operations: Sequence[Operation]) -> list[Operation]:
    """Return as few operations as can be told to do the same as these."""
    merged: list[Operation] = []
    for operation in operations:
        merged = _with(merged, operation)
    return merged


def templates_left_out(operations: Sequence[Operation], merged: Sequence[Operation]) -> list[str]:
    """Return the templates by which operations give names and what they were merged into does not.

    What has such a name before is taken along by the operations, and left as it is by what they were merged into.
    """
    left_out: dict[object, str] = {}
    taken: set[object] = set()
    still = Counter(numbered(given) for each in merged for given in keys_given(each))
    for operation in operations:
        taken.update(map(numbered, keys_taken(operation)))
        for given in keys_given(operation):
            if still[numbered(given)] > 0:
                still[numbered(given)] -= 1
            elif not is_exact(given) and numbered(given) not in taken:
                left_out[numbered(given)] = given
    return list(left_out.values())


def _with(before: list[Operation], operation: Operation) -> list[Operation]:
    """Return operations with another one at the end, merged with the last one that it goes on from."""
    for place in range(len(before) - 1, -1, -1):
        made = _merge(before[place], operation)
        if made is not None and not _is_given_before(before[:place], before[place]):
            # It may now go on from one before.
            after = before[place + 1 :]
            result = before[:place]
            for each in [*made, *after]:
                result = _with(result, each)
            return result
        if not _are_apart(before[place], operation):
            break
    return [*before, operation]


def _is_given_before(before: Sequence[Operation], operation: Operation) -> bool:
    """Tell whether a template gives names of which some are there by one of the operations before."""
    templates = [given for given in keys_given(operation) if not is_exact(given)]
    there = [key for each in before for key in keys_left(each)]
    return any(may_meet(key, template) for key in there for template in templates)


def _merge(first: Operation, second: Operation) -> Merged:
    if _undoes(first, second):
        return []
    for (one, other), function in _MERGERS.items():
        if type(first) is one and type(second) is other:
            return function(first, second)
    return None


def _undoes(first: Operation, second: Operation) -> bool:
    if getattr(first, "missing", "error") == "skip" or _may_join(first):
        return False
    try:
        return first.declared_inverse() == (second,)
    except NotInvertible:
        return False


def _may_join(operation: Operation) -> bool:
    """Tell whether what it makes may have been there before and stays as it is, which the way back would take too."""
    if isinstance(operation, Reindex) and operation.numbers is not None:
        # A layer of two numbers may become one, if no key of the one is a key of the other.
        return {old for old, _ in operation.numbers} != {new for _, new in operation.numbers}
    return isinstance(operation, StripPrefix | RenameClass)


def _of_one_section(first: StateDictOperation, second: StateDictOperation) -> bool:
    return first.section == second.section and first.missing == second.missing == "error"


def _renames(first: Rename, second: Rename) -> Merged:
    if not _of_one_section(first, second):
        return None
    if not all(isinstance(old, str) for old, _ in first.pairs):
        return None
    pairs = list(first.pairs)
    rest: list[tuple[KeyPattern, str]] = []
    for old, new in second.pairs:
        # All of the second are at once, so each goes on from what the first made.
        follows = [n for n, (_, given) in enumerate(first.pairs) if may_meet(given, old)]
        if not follows:
            rest.append((old, new))
            continue
        place = follows[0]
        source, given = first.pairs[place]
        if len(follows) > 1 or not is_same(given, old):
            return None
        pairs[place] = source, renamed_as(new, old, given)
    if len(rest) == len(second.pairs):
        # Two renames of other keys are better read one after the other.
        return None
    if any(may_meet(old, source) for old, _ in rest for source, _ in first.pairs):
        # One key would be renamed twice at once.
        return None
    # All at once, for what one gives up another may take.
    left = tuple(pair for pair in (*pairs, *rest) if pair[0] != pair[1])
    return [replace(first, pairs=left)] if left else []


def _rename_then_drop(first: Rename, second: Drop) -> Merged:
    if not _of_one_section(first, second) or len(first.pairs) != 1 or len(second.keys) != 1:
        return None
    ((old, new),) = first.pairs
    return [replace(second, keys=(old,))] if is_same(new, second.keys[0]) else None


def _add_then_drop(first: Add, second: Drop) -> Merged:
    is_it = _is_plain(first) and second.keys == (first.key,) and _of_one_section(first, second)
    return [] if is_it else None


def _add_then_rename(first: Add, second: Rename) -> Merged:
    if not _is_plain(first) or not _of_one_section(first, second) or len(second.pairs) != 1:
        return None
    ((old, new),) = second.pairs
    return [replace(first, key=new)] if old == first.key and is_exact(new) else None


def _is_plain(operation: Add) -> bool:
    return operation.existing == "error" and not operation.like and not operation.copy_of


def _drops(first: Drop, second: Drop) -> Merged:
    if not _of_one_section(first, second):
        return None
    return [replace(first, keys=(*first.keys, *second.keys))]


def _reindexes(first: Reindex, second: Reindex) -> Merged:
    is_one = first.layers == second.layers and first.numbers is second.numbers is None
    if not is_one or not _of_one_section(first, second):
        return None
    shift = first.shift + second.shift
    return [replace(first, shift=shift)] if shift else []


def _value_renames(first: RenameValue, second: RenameValue) -> Merged:
    if second.path != (*first.path[:-1], first.name) or "skip" in (first.missing, second.missing):
        return None
    return [] if second.name == first.path[-1] else [replace(first, name=second.name)]


def _rename_then_drop_value(first: RenameValue, second: DropValue) -> Merged:
    # With "skip" nothing may be renamed, and what had the new name before is dropped.
    if second.path != (*first.path[:-1], first.name) or "skip" in (first.missing, second.missing):
        return None
    return [replace(second, path=first.path)]


def _set_values(first: SetValue, second: SetValue) -> Merged:
    return [second] if first.path == second.path else None


_MERGERS: dict[tuple[type, type], Callable[..., Merged]] = {
    (Rename, Rename): _renames,
    (Rename, Drop): _rename_then_drop,
    (Add, Drop): _add_then_drop,
    (Add, Rename): _add_then_rename,
    (Drop, Drop): _drops,
    (Reindex, Reindex): _reindexes,
    (RenameValue, RenameValue): _value_renames,
    (RenameValue, DropValue): _rename_then_drop_value,
    (SetValue, SetValue): _set_values,
}


def _are_apart(first: Operation, second: Operation) -> bool:
    """Tell whether two operations may change places: they concern other keys, or other paths."""
    if isinstance(first, StateDictOperation) and isinstance(second, StateDictOperation):
        keys, others = keys_of(first), keys_of(second)
        if keys is None or others is None or first.section != second.section:
            return False
        if isinstance(first, Add) and isinstance(second, Drop):
            # It may drop the last tensor, and without one there is no state dict to add to.
            return False
        return not any(may_meet(key, other) for key in keys for other in others)
    if isinstance(first, PathOperation) and isinstance(second, PathOperation):
        paths, other_paths = _paths_of(first), _paths_of(second)
        if paths is None or other_paths is None:
            return False
        return not any(_is_within(a, b) or _is_within(b, a) for a in paths for b in other_paths)
    return _is_beside(first, second) or _is_beside(second, first)


def _paths_of(operation: PathOperation) -> list[tuple[str, ...]] | None:
    if isinstance(operation, RenameValue):
        return [operation.path, (*operation.path[:-1], operation.name)]
    return [operation.path] if isinstance(operation, SetValue | DropValue) else None


def _is_within(path: Sequence[str], other: Sequence[str]) -> bool:
    return list(path[: len(other)]) == list(other)


def _is_beside(keys: Operation, values: Operation) -> bool:
    """Tell whether one works on the model's state dict, and the other on what stands beside it.

    A checkpoint may be a state dict itself, and a key of it the first name of a path.
    """
    if not isinstance(keys, StateDictOperation) or not isinstance(values, PathOperation):
        return False
    named, paths = keys_of(keys), _paths_of(values)
    if keys.section is not None or named is None or paths is None:
        return False
    if len(values.path) == 1 and not isinstance(values, RenameValue):
        # What else stands at the top tells whether a checkpoint is a state dict itself.
        return False
    tops = [path[0] for path in paths]
    return not any(top in MODEL_SECTIONS or may_meet(key, top) for top in tops for key in named)

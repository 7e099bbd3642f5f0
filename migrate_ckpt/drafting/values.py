"""Compares what stands beside the state dicts of two checkpoints: names that came, went or changed, and classes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from migrate_ckpt.drafting.labels import label_of
from migrate_ckpt.drafting.trial import Drafted
from migrate_ckpt.foreign import ForeignGlobal, ForeignObject, global_path, recipe
from migrate_ckpt.operations.classes import RenameClass
from migrate_ckpt.operations.operation import Operation
from migrate_ckpt.operations.paths import Path, show_path
from migrate_ckpt.operations.sections import is_history, is_state_dict
from migrate_ckpt.operations.values import DropValue, RenameValue, SetValue
from migrate_ckpt.optimizers.states import is_optimizer_state
from migrate_ckpt.outline import MAX_DEPTH, outline

MAX_SET_ENTRIES = 50
"""How much a value may hold that is written into a migration."""

_PLAIN = (type(None), bool, int, float, str)


@dataclass
class ValueChanges:
    """What differs beside the state dict.

    Attributes:
        drafted: The operations for names and classes; each is likely only, for two equal numbers prove nothing.
        notes: What is not written, a sentence each.
    """

    drafted: list[Drafted] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def compare_values(old: Any, new: Any, sections: tuple[Path, Path]) -> ValueChanges:
    """Compare two checkpoints in all but their state dicts, whose paths these are; tensors are not looked at."""
    comparison = _Comparison(sections)
    comparison.walk((), old, new)
    changes = ValueChanges(notes=comparison.notes)
    operations = [*comparison.class_renames(), *comparison.operations]
    changes.drafted = [Drafted(operation, 1, (str(operation),)) for operation in operations]
    return changes


class _Comparison:
    def __init__(self, sections: tuple[Path, Path]) -> None:
        self._old_section, self._new_section = sections
        self._classes: dict[str, set[str]] = defaultdict(set)
        self._places: set[tuple[int, int]] = set()
        self.operations: list[Operation] = []
        self.notes: list[str] = []

    def class_renames(self) -> Iterator[Operation]:
        for old, news in self._classes.items():
            new = next(iter(news))
            try:
                operation = RenameClass(old, new)
            except ValueError:
                operation = None
            if len(news) > 1 or operation is None:
                self.notes.append(f"Objects of {old} are of {', '.join(sorted(news))}.")
            else:
                yield operation

    def walk(self, path: Path, old: Any, new: Any) -> None:
        # What stands at several places, or in itself, is what it is at the first.
        if (id(old), id(new)) in self._places:
            return
        self._places.add((id(old), id(new)))
        if is_optimizer_state(old) and is_optimizer_state(new):
            # It follows the model's operations.
            return
        if is_state_dict(old) and is_state_dict(new) and old.keys() != new.keys():
            self.notes.append(
                f"The tensors under {show_path(path)} have other names, too. What is done to the model is done there, "
                f"too, where it is named: optimizer = follow(copies=[{show_path(path)!r}])."
            )
            return
        before, after = _class_of(old), _class_of(new)
        if before and after and before != after:
            self._classes[before].add(after)
        olds, news = _children(old), _children(new)
        if olds is None or news is None:
            if _label(old) != _label(new) and not (before and after):
                self.notes.append(f"The value of {show_path(path)} is another one.")
            return
        olds = {n: v for n, v in olds.items() if (*path, n) != self._old_section}
        news = {n: v for n, v in news.items() if (*path, n) != self._new_section}
        renamed = _pairs(olds, news)
        for name, value in olds.items():
            if name in renamed:
                self.operations.append(RenameValue((*path, name), renamed[name]))
                self.walk((*path, renamed[name]), value, news[renamed[name]])
            elif name in news:
                self.walk((*path, name), value, news[name])
            else:
                self._drop((*path, name), value)
        for name, value in news.items():
            if name not in olds and name not in renamed.values():
                self._set((*path, name), value)

    def _drop(self, path: Path, value: Any) -> None:
        if _holds_tensors(value):
            self.notes.append(f"{show_path(path)} is not there any more, and was left.")
        else:
            self.operations.append(DropValue(path))

    def _set(self, path: Path, value: Any) -> None:
        if _is_plain(value):
            self.operations.append(SetValue(path, value))
        else:
            self.notes.append(f"{show_path(path)} is new, and cannot be written down.")


def _pairs(olds: Mapping[str, Any], news: Mapping[str, Any]) -> dict[str, str]:
    """Return the names that went and those that came with the same value, where no other has it."""
    gone: dict[bytes, list[str]] = defaultdict(list)
    came: dict[bytes, list[str]] = defaultdict(list)
    for names, others, found in ((olds, news, gone), (news, olds, came)):
        for name, value in names.items():
            if name not in others:
                found[_label(value)].append(name)
    return {
        names[0]: came[label][0]
        for label, names in gone.items()
        if len(names) == 1 and len(came.get(label, ())) == 1
    }


def _label(value: Any) -> bytes:
    return label_of(value, reads_tensors=False)


def _children(value: Any) -> dict[str, Any] | None:
    """Return what stands under names in a value; None where names are not what it holds."""
    if isinstance(value, ForeignObject) and not isinstance(value, Mapping):
        if recipe(value).state_kind not in ("dict", "slots"):
            return None
        held = dict(vars(value))
        content = held.get("_content")
        if (_class_of(value) or "").startswith("omegaconf.") and isinstance(content, Mapping):
            held = dict(content)
    elif isinstance(value, Mapping):
        held = dict(value.items())
    else:
        return None
    return {
        name: child for name, child in held.items() if type(name) is str and not is_history(name)
    }


def _class_of(value: Any) -> str | None:
    if not isinstance(value, ForeignObject):
        return None
    function = recipe(value).function
    return global_path(function) if isinstance(function, ForeignGlobal) else None


def _holds_tensors(value: Any) -> bool:
    return any(entry.shape is not None for entry in outline(value))


def _is_plain(value: Any, depth: int = 0) -> bool:
    if depth > MAX_DEPTH or len(outline(value, max_entries=MAX_SET_ENTRIES + 1)) > MAX_SET_ENTRIES:
        return False
    if type(value) is dict:
        return all(type(k) is str and _is_plain(v, depth + 1) for k, v in value.items())
    if type(value) is list:
        return all(_is_plain(v, depth + 1) for v in value)
    return type(value) in _PLAIN

"""The changes between two outlines of one checkpoint: what was added, removed, changed and renamed, as plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from migrate_ckpt.outline import OutlineEntry

ChangeKind: TypeAlias = Literal["added", "removed", "changed", "renamed"]
MAX_CHANGES = 10_000
"""How many changes of one step are kept; all are counted."""


@dataclass(frozen=True, slots=True)
class Change:
    """One difference: an added value has no `before`, a removed one no `after`."""

    kind: ChangeKind
    before: OutlineEntry | None
    after: OutlineEntry | None

    def to_dict(self) -> dict[str, Any]:
        sides = {"before": self.before, "after": self.after}
        return {
            "change": self.kind,
            **{side: entry.to_dict() for side, entry in sides.items() if entry is not None},
        }


@dataclass(frozen=True, slots=True)
class Preview:
    """What a step that has not run yet would do, as far as that can be known.

    Attributes:
        changes: The first of its changes; None where they are unknown, because it failed or came after one that did.
        counts: How many there are of each kind, of all.
        warnings: What a reader should know of it, a sentence each: that it does not apply to this checkpoint, and why.
        error: Why it fails, as an error's `to_dict`; with changes: why the run does, of which it is the last step.
    """

    changes: tuple[Change, ...] | None = None
    counts: Mapping[str, int] | None = None
    warnings: tuple[str, ...] = ()
    error: Mapping[str, Any] | None = None

    @classmethod
    def of(
        cls,
        changes: Sequence[Change],
        *,
        warnings: tuple[str, ...] = (),
        max_changes: int | None = MAX_CHANGES,
    ) -> Preview:
        counts = Counter[str](change.kind for change in changes)
        return cls(tuple(changes[:max_changes]), counts, warnings)

    @property
    def is_truncated(self) -> bool:
        return self.changes is not None and len(self.changes) < sum((self.counts or {}).values())

    def to_dict(self) -> dict[str, Any]:
        if self.changes is None:
            return {"changes": None, "error": None if self.error is None else dict(self.error)}
        return {
            "changes": [change.to_dict() for change in self.changes],
            "counts": dict(self.counts or {}),
            "truncated": self.is_truncated,
            "warnings": list(self.warnings),
            **({} if self.error is None else {"error": dict(self.error)}),
        }


def find_changes(before: Sequence[OutlineEntry], after: Sequence[OutlineEntry]) -> list[Change]:
    """The changes that make one outline of the other: what goes, then the rest in the order of `after`.

    A tensor that is the same in all but its path, content included, was renamed.
    """
    old = {entry.path: entry for entry in before}
    new = {entry.path: entry for entry in after}
    renamed = dict(_pair_renamed(old, new))
    left = {entry.path for entry in renamed.values()}
    removed = [
        Change("removed", entry, None)
        for path, entry in old.items()
        if path not in left and (path not in new or path in renamed)
    ]
    rest = []
    for path, entry in new.items():
        if path in renamed:
            rest.append(Change("renamed", renamed[path], entry))
        elif path not in old or path in left:
            rest.append(Change("added", None, entry))
        elif entry != old[path]:
            rest.append(Change("changed", old[path], entry))
    return removed + rest


def apply_changes(before: Sequence[OutlineEntry], changes: Sequence[Change]) -> set[OutlineEntry]:
    """The entries of the outline that the changes make of another."""
    entries = set(before) - {change.before for change in changes}
    return {*entries, *(change.after for change in changes if change.after is not None)}


def _pair_renamed(
    old: Mapping[tuple[str, ...], OutlineEntry], new: Mapping[tuple[str, ...], OutlineEntry]
) -> Iterator[tuple[tuple[str, ...], OutlineEntry]]:
    """Pair each new path with the entry whose tensor came to it from another path that it left."""
    gone: dict[Hashable, list[OutlineEntry]] = {}
    for path, entry in old.items():
        if _is_identified(entry) and new.get(path) != entry:
            gone.setdefault(_anywhere(entry), []).append(entry)
    for path, entry in new.items():
        if (
            _is_identified(entry)
            and old.get(path) != entry
            and (same := gone.get(_anywhere(entry)))
        ):
            yield path, same.pop(0)


def _is_identified(entry: OutlineEntry) -> bool:
    return entry.shape is not None and entry.content is not None


def _anywhere(entry: OutlineEntry) -> Hashable:
    """All that an entry says but its path."""
    return entry.kind, entry.dtype, entry.shape, entry.nbytes, entry.content

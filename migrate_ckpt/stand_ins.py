"""Squashed migrations: which of a set's stand for others, and which of the two are to run for a history.

A squashed migration `replaces` some that come just before it. A checkpoint that has had none of them gets it in their
place; one that has had some gets the rest of them, one by one; and who has had all has had it, too.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol


class Replacing(Protocol):
    """What must be known of a migration."""

    @property
    def name(self) -> str: ...
    @property
    def replaces(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True)
class StandIns:
    """What follows from a history for the squashed migrations of a set and those that they replace.

    Attributes:
        replaced: The names whose work another one does, or has done.
        done: Squashed ones whose work was done by those they replace, which are not in the set any more.
        missing: For squashed ones that cannot stand for the rest: their names, and those that the set lacks.
        known: All names that are replaced by one of the set, whether they are in it or not.
    """

    replaced: frozenset[str]
    done: frozenset[str]
    missing: tuple[tuple[str, tuple[str, ...]], ...]
    known: frozenset[str]


def find_stand_ins(
    migrations: Sequence[Replacing], recorded: Collection[str], to: str | None
) -> StandIns:
    """Return what a history with these names means; `to` is the migration to stop after."""
    names = {migration.name for migration in migrations}
    replaced: set[str] = set()
    done: set[str] = set()
    missing: list[tuple[str, tuple[str, ...]]] = []
    squashed = [migration for migration in migrations if migration.replaces]
    for each in squashed:
        here = {name for name in each.replaces if name in names}
        had = {name for name in each.replaces if name in recorded}
        if each.name in recorded:
            replaced |= here - had
        elif len(had) == len(each.replaces):
            (replaced if len(here) == len(each.replaces) else done).add(each.name)
        elif not had and to not in here:
            replaced |= here
        else:
            replaced.add(each.name)
            lacking = tuple(name for name in each.replaces if name not in had | here)
            missing += [(each.name, lacking)] if lacking else []
    known = frozenset(name for each in squashed for name in each.replaces)
    return StandIns(frozenset(replaced), frozenset(done), tuple(missing), known)

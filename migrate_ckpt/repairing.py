"""Accepts what was edited: gives the records of a history the names and digests that the migrations have now."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from migrate_ckpt.history import Record, read_history, write_history
from migrate_ckpt.migration import CkptType
from migrate_ckpt.plan import Plan


class Repaired(NamedTuple):
    """The checkpoint, and the migrations whose records were changed."""

    ckpt: CkptType
    names: tuple[str, ...]


def repair_history(ckpt: CkptType, plan: Plan, names: Collection[str] = ()) -> Repaired:
    """Accept the changed and renamed migrations of a plan, or those of some names, in a checkpoint that is changed."""
    history = read_history(ckpt)
    order = [step.name for step in plan.steps if step.state != "unknown"]
    renamed = _accepted(plan.renamed, names)
    changed = [s for s in plan.steps if s.state == "changed" and (not names or s.name in names)]
    place = history.place
    history = history.with_renamed(renamed, set_name=plan.set_name, names=order)
    for step in changed:
        record = Record(step.name, plan.set_name, step.digest)
        history = history.with_record(record, order, set_name=plan.set_name)
    repaired = (*(new for _, new in renamed), *(step.name for step in changed))
    if repaired:
        ckpt = write_history(ckpt, history, in_metadata=place == "metadata")
    return Repaired(ckpt, repaired)


def _accepted(renamed: Sequence[tuple[str, str]], names: Collection[str]) -> list[tuple[str, str]]:
    """Return the renamings that lead to some names, or all of them.

    A record gets another name or digest only together with the renaming that leads away from it: it may be all that
    says that the other file has run.
    """
    accepted = set(names)
    for _ in renamed:
        accepted |= {new for old, new in renamed if old in accepted}
    return [pair for pair in renamed if not names or pair[1] in accepted]

"""Accepts what was edited: gives the records of a history the names and digests that the migrations have now."""

from __future__ import annotations

from collections.abc import Collection
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
    renamed = [pair for pair in plan.renamed if not names or pair[1] in names]
    changed = [s for s in plan.steps if s.state == "changed" and (not names or s.name in names)]
    place = history.place
    history = history.with_renamed(renamed, set_name=plan.set_name)
    for step in changed:
        record = Record(step.name, plan.set_name, step.digest)
        history = history.with_record(record, order, set_name=plan.set_name)
    repaired = (*(new for _, new in renamed), *(step.name for step in changed))
    if repaired:
        ckpt = write_history(ckpt, history, in_metadata=place == "metadata")
    return Repaired(ckpt, repaired)

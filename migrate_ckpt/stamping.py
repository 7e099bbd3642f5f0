"""The stamp: tells a fresh checkpoint that it needs none of today's migrations.

Training code calls it on what it is about to save. It needs the standard library only.
"""

from __future__ import annotations

from collections import OrderedDict
from copy import copy
from os import PathLike

from migrate_ckpt.folder import DEFAULT_SET, MigrationSet, as_set
from migrate_ckpt.history import History, Record, is_flat_state_dict, read_history, write_history
from migrate_ckpt.migration import CkptType


def stamp(
    ckpt: CkptType,
    folder: str | PathLike[str] | MigrationSet,
    *,
    set_name: str = DEFAULT_SET,
) -> CkptType:
    """Return the checkpoint with all of a set's migrations in its history; nothing is run.

    The one passed in is not changed: the result is a shallow copy that shares its values. Where
    a framework wants its own mapping changed, `checkpoint.update(stamp(checkpoint, folder))`.
    For a flat state dict the result is an `OrderedDict` with the history in its `_metadata`.

    A long training had better read the set when it starts, with `read_set`, and give that: what
    it saves is of the code that it runs, whatever is added to the folder meanwhile.
    """
    migration_set = as_set(folder, set_name)
    order = [file.name for file in migration_set.files]
    history = read_history(ckpt)
    for file in migration_set.files:
        record = Record(file.name, migration_set.name, file.digest)
        history = history.with_record(record, order, set_name=migration_set.name)
    return write_history(_shallow_copy(ckpt), history, in_metadata=_in_metadata(ckpt, history))


def _in_metadata(ckpt: CkptType, history: History) -> bool:
    if history.place is None:
        return is_flat_state_dict(ckpt)
    return history.place == "metadata"


def _shallow_copy(ckpt: CkptType) -> CkptType:
    copied = copy(ckpt)
    if isinstance(copied, OrderedDict) and "_metadata" in vars(copied):
        vars(copied)["_metadata"] = copy(vars(copied)["_metadata"])
    return copied

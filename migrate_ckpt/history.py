"""The history: which migrations a checkpoint has had, as it travels inside the checkpoint.

It stands in one of two places, as plain lists, dicts and strings:

* in the checkpoint itself, under `ckpt_migration_key`: the list of names, which the original
  library reads and writes too;
* for a flat state dict in its `_metadata`, under the same key, because a strict
  `load_state_dict` refuses a foreign key among the weights.

Beside the list, under `records_key`, stands what the list cannot say:
`{"format": 1, "records": [{"name": ..., "set": ..., "digest": ...}, ...]}`. The list is the
truth: a record whose name it lacks is dropped, a name without a record has no set and no digest.
Two sets may have applied migrations of one name: then the list has the name twice.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from migrate_ckpt.digest import is_different
from migrate_ckpt.errors import InvalidHistory
from migrate_ckpt.migration import CkptType

ckpt_migration_key = "_migrate-ckpt-migrations"
records_key = "_migrate-ckpt-records"

# A set, because it asks a key for its hash only: what a file has as a key need not answer ==.
_OWN_KEYS = frozenset((ckpt_migration_key, records_key))

RECORDS_FORMAT = 1
MAX_RECORDS = 10_000
MAX_TEXT_CHARACTERS = 255

Place: TypeAlias = Literal["key", "metadata"]


@dataclass(frozen=True, slots=True)
class Record:
    """One applied migration; set and digest are unknown where the original library wrote it."""

    name: str
    set: str | None = None
    digest: str | None = None

    def counts_in(self, set_name: str) -> bool:
        """Tell whether this is a migration of that set: the record names the set, or none."""
        return self.set is None or self.set == set_name


@dataclass(frozen=True, slots=True)
class History:
    """The records in the order they stand in, and the place they were read from."""

    records: tuple[Record, ...] = ()
    place: Place | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(record.name for record in self.records)

    def find(self, name: str, *, set_name: str) -> Record | None:
        """Return the record by which a name counts as applied in a set."""
        found = [r for r in self.records if r.name == name and r.counts_in(set_name)]
        # The set's own record knows more than one that names no set.
        return max(found, key=lambda record: record.set is not None, default=None)

    def counting_in(self, set_name: str) -> dict[str, Record]:
        """Return for each name that counts in a set the record that `find` does."""
        known: dict[str, Record] = {}
        for record in self.records:
            if not record.counts_in(set_name):
                continue
            there = known.get(record.name)
            if there is None or (there.set is None and record.set is not None):
                known[record.name] = record
        return known

    def with_record(self, record: Record, order: Sequence[str], *, set_name: str) -> History:
        """Add a record, or replace the one of its name, in folder order.

        The set's migrations come to stand in the order of the folder, in the positions they hold
        among the others; a new one goes before the first that comes after it in the folder, or
        to the end. All other records stay as they are and in their order.
        """
        position = {name: i for i, name in enumerate(order)}
        here = [r for r in self.records if r.counts_in(set_name) and r.name in position]
        in_order = iter(sorted(here, key=lambda r: position[r.name]))
        records = [next(in_order) if r in here else r for r in self.records]
        old = self.find(record.name, set_name=set_name)
        if old is not None:
            records[records.index(old)] = record
        else:
            records.insert(_place_of(record, records, here, position), record)
        return replace(self, records=tuple(records))

    def with_renamed(
        self, renamed: Iterable[tuple[str, str]], *, set_name: str, names: Collection[str] = ()
    ) -> History:
        """Put each new name in the place of the old one, all at once: one may be the old name of another.

        The old one is not kept, unless it is among `names`, those of the set's migrations, and no renaming leads to
        it: it was another file's, and must not run for having lost its record.
        """
        new_names = dict(renamed)
        known = self.counting_in(set_name)
        given = set(new_names.values())
        # Of one whose own record shows another code, that record is not the one that counts.
        giving_way = {
            new
            for old, new in new_names.items()
            if old in known and new in known and is_different(known[old].digest, known[new].digest)
        }
        records = []
        for record in self.records:
            is_old = record.name in new_names
            if not record.counts_in(set_name) or not (is_old or record.name in giving_way):
                records.append(record)
                continue
            if record.name in names and record.name not in given:
                records.append(record)
            new_name = new_names.get(record.name)
            is_free = new_name not in known or new_name in new_names or new_name in giving_way
            if new_name is not None and is_free:
                records.append(replace(record, name=new_name))
        return replace(self, records=tuple(records))

    def without(self, names: Collection[str], *, set_name: str) -> History:
        """Take the records of some of a set's migrations out."""
        left = [r for r in self.records if not (r.name in names and r.counts_in(set_name))]
        return replace(self, records=tuple(left))

    def refined_by(self, other: History) -> History:
        """Take from another history what is known of the names whose records here are bare."""
        known: dict[str, list[Record]] = {}
        for record in other.records:
            if record not in self.records:
                known.setdefault(record.name, []).append(record)
        bare = {r for r in self.records if r == Record(r.name)}
        records = [
            known[r.name].pop(0) if r in bare and known.get(r.name) else r for r in self.records
        ]
        return replace(self, records=tuple(records))


def _place_of(
    record: Record, records: Sequence[Record], here: Sequence[Record], position: Mapping[str, int]
) -> int:
    for i, other in enumerate(records):
        if other in here and position[other.name] > position[record.name]:
            return i
    return len(records)


def read_history(ckpt: Mapping[str, Any]) -> History:
    """Read the history from both places; what stands under the key comes first.

    Raises:
        InvalidHistory: What stands there is not a bounded list of plain strings, or the records
            beside it are not of a format this version knows.
    """
    metadata = _metadata_of(ckpt) or {}
    under_key, in_metadata = _read_records(ckpt), _read_records(metadata)
    records = tuple(dict.fromkeys([*under_key, *in_metadata]))
    if ckpt_migration_key in ckpt:
        return History(records, "key")
    return History(records, "metadata" if ckpt_migration_key in metadata else None)


def write_history(ckpt: CkptType, history: History, *, in_metadata: bool) -> CkptType:
    """Write the history into one place and remove it from the other; changes `ckpt` in place.

    Returns `ckpt`, or an `OrderedDict` of its items where it cannot carry a `_metadata`.
    """
    if not in_metadata:
        _remove_history(_metadata_of(ckpt))
        _put_history(ckpt, history)
        return ckpt
    if not isinstance(ckpt, OrderedDict):
        ckpt = OrderedDict(ckpt)
    metadata = _metadata_of(ckpt)
    if metadata is None:
        metadata = OrderedDict()
        vars(ckpt)["_metadata"] = metadata
    _remove_history(ckpt)
    _put_history(metadata, history)
    return ckpt


def remove_history(ckpt: CkptType) -> None:
    """Take the history out of a checkpoint, wherever it stands."""
    _remove_history(_metadata_of(ckpt))
    _remove_history(ckpt)


def is_flat_state_dict(ckpt: Mapping[str, Any]) -> bool:
    """Tell whether all values are tensors, and there are some; a history does not count.

    A value can only be a tensor if somebody has imported torch.
    """
    torch = sys.modules.get("torch")
    values = [v for k, v in ckpt.items() if k not in _OWN_KEYS]
    if torch is None or not values:
        return False
    return all(isinstance(value, torch.Tensor) for value in values)


def is_usable_name(name: str) -> bool:
    """Tell whether a name may stand in a history: short, and nothing in it is invisible."""
    return 0 < len(name) <= MAX_TEXT_CHARACTERS and name.isprintable()


def _metadata_of(ckpt: Mapping[str, Any]) -> MutableMapping[str, Any] | None:
    if not isinstance(ckpt, OrderedDict):
        return None
    metadata = vars(ckpt).get("_metadata")
    return metadata if isinstance(metadata, MutableMapping) else None


def _remove_history(mapping: MutableMapping[str, Any] | None) -> None:
    if mapping is not None:
        mapping.pop(ckpt_migration_key, None)
        mapping.pop(records_key, None)


def _put_history(mapping: MutableMapping[str, Any], history: History) -> None:
    # Always new lists: a migration that appends to the one it sees must not change our own.
    mapping[ckpt_migration_key] = list(history.names)
    records = [_to_plain(r) for r in history.records if r.set is not None or r.digest is not None]
    if records:
        mapping[records_key] = {"format": RECORDS_FORMAT, "records": records}
    else:
        # What only the original library can know needs no second key.
        mapping.pop(records_key, None)


def _to_plain(record: Record) -> dict[str, str]:
    plain = {"name": record.name, "set": record.set, "digest": record.digest}
    return {key: value for key, value in plain.items() if value is not None}


def _read_records(mapping: Mapping[str, Any]) -> list[Record]:
    """Return the list's names, each with the first record of its name that is not used yet."""
    if ckpt_migration_key not in mapping:
        return []
    known: dict[str, list[Record]] = {}
    for record in _read_annotations(mapping.get(records_key)):
        known.setdefault(record.name, []).append(record)
    records = []
    for name in _bounded_list(mapping[ckpt_migration_key], ckpt_migration_key):
        _require_text(name, ckpt_migration_key)
        records.append(known[name].pop(0) if known.get(name) else Record(name))
    return records


def _read_annotations(value: Any) -> list[Record]:
    if value is None:
        return []
    if type(value) is not dict or set(value) != {"format", "records"}:
        raise InvalidHistory(
            f"The checkpoint's {records_key!r} is not what this library writes there. "
            "Remove that key to go on with the names alone."
        )
    if type(value["format"]) is not int or value["format"] != RECORDS_FORMAT:
        raise InvalidHistory(
            f"The checkpoint's {records_key!r} is not of format {RECORDS_FORMAT}, the only one "
            "this version knows. Use the version of migrate-ckpt that wrote it."
        )
    return [_read_record(item) for item in _bounded_list(value["records"], records_key)]


def _read_record(item: Any) -> Record:
    if type(item) is not dict or not {"name"} <= set(item) <= {"name", "set", "digest"}:
        raise InvalidHistory(f"An entry of the checkpoint's {records_key!r} is no record.")
    for text in item.values():
        _require_text(text, records_key)
    return Record(**item)


def _bounded_list(value: Any, key: str) -> list[Any]:
    if type(value) is not list:
        raise InvalidHistory(
            f"The checkpoint's {key!r} holds a {type(value).__name__} where a list must be."
        )
    if len(value) > MAX_RECORDS:
        raise InvalidHistory(
            f"The checkpoint's {key!r} has {len(value)} entries; at most {MAX_RECORDS} can be."
        )
    return value


def _require_text(value: Any, key: str) -> None:
    if type(value) is not str:
        raise InvalidHistory(
            f"The checkpoint's {key!r} holds a {type(value).__name__} where a string must be."
        )
    if not is_usable_name(value):
        raise InvalidHistory(
            f"The checkpoint's {key!r} holds {value!r:.80}: a name is 1 to {MAX_TEXT_CHARACTERS} "
            "printable characters."
        )

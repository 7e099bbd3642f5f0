"""What holds for every history, wherever it stands and whatever is added to it."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from migrate_ckpt.errors import InvalidHistory
from migrate_ckpt.history import (
    History,
    Record,
    ckpt_migration_key,
    is_usable_name,
    read_history,
    records_key,
    write_history,
)

NAMES = st.text("abcdefgh", min_size=1, max_size=2)
TEXTS = st.text(min_size=1, max_size=20).filter(is_usable_name)
SETS = st.sampled_from([None, "default", "other"])


def histories(names: st.SearchStrategy[str], digests: st.SearchStrategy[Any]) -> Any:
    records = st.lists(st.builds(Record, names, SETS, digests), unique=True, max_size=10)
    return records.map(lambda found: History(tuple(found)))


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
NEARLY_RECORDS = st.fixed_dictionaries(
    {"format": st.sampled_from([1, 2, True, "1"]) | PLAIN, "records": st.lists(PLAIN, max_size=3)}
)


@given(histories(TEXTS, st.none() | TEXTS), st.booleans())
def test_history_written_anywhere_is_read_again(history: History, in_metadata: bool) -> None:
    ckpt = write_history({}, history, in_metadata=in_metadata)

    found = read_history(ckpt)

    # Of two records of one name, one that knows nothing may change places with the other.
    assert sorted(found.records, key=repr) == sorted(history.records, key=repr)
    assert found.names == history.names
    assert found.place == ("metadata" if in_metadata else "key")


@given(PLAIN, PLAIN | NEARLY_RECORDS, st.booleans())
def test_any_value_in_its_place_is_a_history_or_refused(
    names: Any, records: Any, in_metadata: bool
) -> None:
    entries = {ckpt_migration_key: names, records_key: records}
    ckpt: OrderedDict[str, Any] = OrderedDict({} if in_metadata else entries)
    vars(ckpt)["_metadata"] = entries if in_metadata else {}

    try:
        found = read_history(ckpt)
    except InvalidHistory:
        return

    assert list(found.names) == list(dict.fromkeys(names))


@given(st.lists(NAMES, unique=True, max_size=8).map(sorted), histories(NAMES, st.none()), st.data())
def test_added_record_leaves_the_folders_names_in_order_and_the_others_as_they_were(
    order: list[str], history: History, data: Any
) -> None:
    new = Record(data.draw(st.sampled_from([*order, "zz"])), "default", "1:0")
    order = [*order, "zz"]

    after = history.with_record(new, order, set_name="default")

    def is_ours(record: Record) -> bool:
        return record.name in order and record.counts_in("default")

    ours = [order.index(record.name) for record in after.records if is_ours(record)]
    assert ours == sorted(ours)
    assert [r for r in after.records if not is_ours(r)] == [
        r for r in history.records if not is_ours(r)
    ]
    assert new in after.records
    assert len(after.records) - len(history.records) == (
        history.find(new.name, set_name="default") is None
    )

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch

from migrate_ckpt.errors import InvalidHistory
from migrate_ckpt.history import (
    MAX_RECORDS,
    History,
    Record,
    ckpt_migration_key,
    is_flat_state_dict,
    read_history,
    records_key,
    write_history,
)


def with_metadata(ckpt: dict[str, Any], **metadata: Any) -> OrderedDict[str, Any]:
    ordered = OrderedDict(ckpt)
    vars(ordered)["_metadata"] = OrderedDict(metadata)
    return ordered


def records(*items: dict[str, Any], format: Any = 1) -> dict[str, Any]:
    return {"format": format, "records": list(items)}


def history(*names: str) -> History:
    return History(tuple(Record(name) for name in names))


class TestReading:
    def test_checkpoint_without_one_has_an_empty_history_without_a_place(self) -> None:
        assert read_history({"state_dict": {}}) == History()

    def test_history_of_the_original_library_is_read_without_sets_and_digests(self) -> None:
        found = read_history({ckpt_migration_key: ["a", "b"]})

        assert found == History((Record("a"), Record("b")), "key")

    def test_records_say_set_and_digest_of_the_names_in_the_list(self) -> None:
        record = {"name": "b", "set": "default", "digest": "1:00"}

        found = read_history({ckpt_migration_key: ["a", "b"], records_key: records(record)})

        assert found.records == (Record("a"), Record("b", "default", "1:00"))

    def test_record_whose_name_is_not_in_the_list_is_dropped(self) -> None:
        record = {"name": "gone", "set": "default"}

        found = read_history({ckpt_migration_key: ["a"], records_key: records(record)})

        assert found.records == (Record("a"),)

    def test_two_sets_may_have_a_migration_of_one_name(self) -> None:
        ckpt = {
            ckpt_migration_key: ["0_init", "0_init"],
            records_key: records(
                {"name": "0_init", "set": "library"}, {"name": "0_init", "set": "app"}
            ),
        }

        found = read_history(ckpt)

        assert found.records == (Record("0_init", "library"), Record("0_init", "app"))

    def test_history_in_metadata_is_found_there(self) -> None:
        ckpt = with_metadata({}, **{ckpt_migration_key: ["a"], "": {"version": 1}})

        assert read_history(ckpt) == History((Record("a"),), "metadata")

    def test_history_in_both_places_is_the_union_and_stands_under_the_key(self) -> None:
        ckpt = with_metadata({ckpt_migration_key: ["a"]}, **{ckpt_migration_key: ["a", "b"]})

        assert read_history(ckpt) == History((Record("a"), Record("b")), "key")

    def test_metadata_that_is_no_mapping_is_passed_over(self) -> None:
        ckpt: OrderedDict[str, Any] = OrderedDict()
        vars(ckpt)["_metadata"] = [ckpt_migration_key]

        assert read_history(ckpt) == History()

    @pytest.mark.parametrize(
        "value",
        [
            pytest.param("a", id="a string"),
            pytest.param(("a",), id="a tuple"),
            pytest.param(None, id="None"),
            pytest.param([1], id="a number in the list"),
            pytest.param([["a"]], id="a list in the list"),
            pytest.param([""], id="an empty name"),
            pytest.param(["a" * 256], id="a long name"),
            pytest.param(["a\nb"], id="a line break"),
            pytest.param(["a\x00"], id="a zero byte"),
            pytest.param(["\ud800"], id="a lone surrogate"),
            pytest.param(["a"] * (MAX_RECORDS + 1), id="too many"),
            pytest.param(type("List", (list,), {})(["a"]), id="a subclass of list"),
            pytest.param([type("Str", (str,), {})("a")], id="a subclass of str"),
        ],
    )
    @pytest.mark.parametrize("in_metadata", [False, True], ids=["key", "metadata"])
    def test_anything_but_a_bounded_list_of_strings_is_refused(
        self, value: Any, in_metadata: bool
    ) -> None:
        entry = {ckpt_migration_key: value}
        ckpt = with_metadata({}, **entry) if in_metadata else entry

        with pytest.raises(InvalidHistory, match=ckpt_migration_key):
            read_history(ckpt)

    @pytest.mark.parametrize(
        "value",
        [
            pytest.param([], id="a list"),
            pytest.param({"format": 1}, id="no records"),
            pytest.param({**records(), "more": 1}, id="another key"),
            pytest.param(records(format=2), id="a later format"),
            pytest.param(records(format=True), id="a format that only equals one"),
            pytest.param({"format": 1, "records": {}}, id="records that are no list"),
            pytest.param({"format": 1, "records": ["a"]}, id="a record that is a string"),
            pytest.param(records({"set": "default"}), id="a record without a name"),
            pytest.param(records({"name": "a", "more": "x"}), id="a record with another key"),
            pytest.param(records({"name": "a", "set": None}), id="a set that is None"),
            pytest.param(records({"name": "a", "digest": 1}), id="a digest that is a number"),
        ],
    )
    def test_records_of_another_shape_are_refused(self, value: Any) -> None:
        with pytest.raises(InvalidHistory, match=records_key):
            read_history({ckpt_migration_key: ["a"], records_key: value})


class TestWriting:
    def test_history_written_is_read_again(self) -> None:
        wanted = History((Record("a"), Record("b", "default", "1:00"), Record("b", "other")))

        ckpt = write_history({}, wanted, in_metadata=False)

        assert read_history(ckpt).records == wanted.records

    def test_names_alone_need_no_second_key(self) -> None:
        ckpt = write_history({records_key: records()}, history("a"), in_metadata=False)

        assert ckpt == {ckpt_migration_key: ["a"]}

    def test_what_is_written_is_plain_data(self) -> None:
        ckpt = write_history({}, History((Record("a", "default", "1:00"),)), in_metadata=False)

        assert ckpt == {
            ckpt_migration_key: ["a"],
            records_key: {
                "format": 1,
                "records": [{"name": "a", "set": "default", "digest": "1:00"}],
            },
        }

    def test_mapping_is_changed_in_place_where_it_can_hold_the_history(self) -> None:
        ckpt: dict[str, Any] = {}

        assert write_history(ckpt, history("a"), in_metadata=False) is ckpt

    def test_plain_dict_becomes_an_ordered_one_to_hold_metadata(self) -> None:
        ckpt = write_history({"weight": 1}, history("a"), in_metadata=True)

        assert type(ckpt) is OrderedDict
        assert list(ckpt) == ["weight"]
        assert read_history(ckpt) == History((Record("a"),), "metadata")

    def test_what_else_is_in_metadata_stays(self) -> None:
        ckpt = with_metadata({}, **{"": {"version": 1}})

        write_history(ckpt, history("a"), in_metadata=True)

        assert vars(ckpt)["_metadata"][""] == {"version": 1}

    @pytest.mark.parametrize("in_metadata", [False, True], ids=["to the key", "to metadata"])
    def test_moved_history_is_gone_from_the_old_place(self, in_metadata: bool) -> None:
        before = History((Record("a", "default", "1:00"),))
        ckpt = write_history(OrderedDict(), before, in_metadata=not in_metadata)

        write_history(ckpt, before, in_metadata=in_metadata)

        in_the_key = {ckpt_migration_key, records_key} & set(ckpt)
        in_the_metadata = {ckpt_migration_key, records_key} & set(vars(ckpt)["_metadata"])
        assert bool(in_the_metadata) is in_metadata
        assert bool(in_the_key) is not in_metadata

    def test_strict_load_accepts_the_history_in_metadata_and_a_save_keeps_it(
        self, tmp_path: Any
    ) -> None:
        layer = torch.nn.Linear(1, 1)
        ckpt = write_history(layer.state_dict(), history("a"), in_metadata=True)

        torch.save(ckpt, tmp_path / "x.pt")
        loaded = torch.load(tmp_path / "x.pt", weights_only=True)

        layer.load_state_dict(loaded, strict=True)
        assert read_history(loaded).names == ("a",)


class TestFlatStateDict:
    @pytest.mark.parametrize(
        ("ckpt", "is_flat"),
        [
            pytest.param({"w": torch.ones(1)}, True, id="tensors"),
            pytest.param({"w": torch.nn.Parameter(torch.ones(1))}, True, id="parameters"),
            pytest.param(
                {"w": torch.ones(1), ckpt_migration_key: [], records_key: {}},
                True,
                id="tensors and a history",
            ),
            pytest.param({}, False, id="nothing"),
            pytest.param({ckpt_migration_key: []}, False, id="only a history"),
            pytest.param({"w": torch.ones(1), "epoch": 1}, False, id="a number among tensors"),
            pytest.param({"state_dict": {"w": torch.ones(1)}}, False, id="tensors one level down"),
        ],
    )
    def test_all_values_are_tensors_and_there_are_some(
        self, ckpt: dict[str, Any], is_flat: bool
    ) -> None:
        assert is_flat_state_dict(ckpt) is is_flat


class TestOrder:
    @pytest.mark.parametrize(
        ("before", "new", "after"),
        [
            ("", "b", "b"),
            ("ac", "d", "acd"),
            ("ac", "b", "abc"),
            ("ca", "b", "abc"),
            ("xac", "b", "xabc"),
            ("axc", "b", "axbc"),
            ("acx", "d", "acxd"),
            ("acx", "b", "abcx"),
            ("cxa", "d", "axcd"),
        ],
    )
    def test_new_name_takes_its_place_in_folder_order_among_unknown_ones(
        self, before: str, new: str, after: str
    ) -> None:
        written = history(*before).with_record(Record(new), "abcd", set_name="default")

        assert "".join(written.names) == after

    def test_record_of_a_known_name_takes_the_place_of_the_old_one(self) -> None:
        record = Record("a", "default", "1:00")

        written = history("a", "b").with_record(record, "ab", set_name="default")

        assert written.records == (record, Record("b"))

    def test_record_of_another_set_is_left_alone(self) -> None:
        other = Record("a", "other")

        written = History((other,)).with_record(Record("a", "default"), "ab", set_name="default")

        assert written.records == (other, Record("a", "default"))


class TestRenaming:
    def test_new_name_stands_where_the_old_one_stood(self) -> None:
        before = History((Record("a"), Record("old", "default", "1:00"), Record("c")))

        after = before.with_renamed([("old", "b")], set_name="default")

        assert after.records == (Record("a"), Record("b", "default", "1:00"), Record("c"))

    def test_old_name_goes_if_the_new_one_is_there_already(self) -> None:
        after = history("old", "b").with_renamed([("old", "b")], set_name="default")

        assert after.names == ("b",)

    def test_all_names_are_given_at_once(self) -> None:
        before = History((Record("1", "default", "1:a"), Record("2", "default", "1:b")))

        after = before.with_renamed([("1", "2"), ("2", "3")], set_name="default", names="23")

        assert after.records == (Record("2", "default", "1:a"), Record("3", "default", "1:b"))

    def test_two_names_may_change_places(self) -> None:
        before = History((Record("1", "default", "1:a"), Record("2", "default", "1:b")))

        after = before.with_renamed([("1", "2"), ("2", "1")], set_name="default", names="12")

        assert after.records == (Record("2", "default", "1:a"), Record("1", "default", "1:b"))

    def test_old_name_stays_if_another_file_has_got_it(self) -> None:
        before = History((Record("1", "default", "1:a"),))

        after = before.with_renamed([("1", "2")], set_name="default", names="12")

        assert after.records == (Record("1", "default", "1:a"), Record("2", "default", "1:a"))

    def test_record_of_the_new_name_that_shows_another_code_gives_way(self) -> None:
        before = History((Record("old", "default", "1:a"), Record("b", "default", "1:b")))

        after = before.with_renamed([("old", "b")], set_name="default", names="b")

        assert after.records == (Record("b", "default", "1:a"),)

    def test_same_name_of_another_set_stays(self) -> None:
        before = History((Record("old", "other"),))

        assert before.with_renamed([("old", "b")], set_name="default") == before


class TestCounting:
    @pytest.mark.parametrize(
        ("record_set", "counts"), [(None, True), ("app", True), ("library", False)]
    )
    def test_name_counts_in_a_set_if_its_record_names_that_set_or_none(
        self, record_set: str | None, counts: bool
    ) -> None:
        found = History((Record("a", record_set),)).find("a", set_name="app")

        assert (found is not None) is counts

    def test_record_of_the_set_is_preferred_to_one_without_a_set(self) -> None:
        own = Record("a", "app", "1:00")

        assert History((Record("a"), own)).find("a", set_name="app") == own


def test_bare_names_are_refined_by_what_another_history_knows() -> None:
    known = History((Record("a", "x", "1:00"), Record("a", "y", "1:01"), Record("b", "x")))

    refined = history("a", "new", "a").refined_by(known)

    assert refined.records == (Record("a", "x", "1:00"), Record("new"), Record("a", "y", "1:01"))

from __future__ import annotations

import json
from typing import Any, get_args

import pytest

from migrate_ckpt.errors import HistoryRefused, UnknownMigration
from migrate_ckpt.history import History, Record
from migrate_ckpt.migration import Migration
from migrate_ckpt.plan import Plan, Policy, make_plan

POLICIES = get_args(Policy)


def migrations(names: str) -> list[Migration]:
    return [Migration(name, lambda ckpt: ckpt, f"Title of {name}", f"1:{name}") for name in names]


def history(names: str) -> History:
    return History(tuple(Record(name) for name in names))


def plan(names: str, applied: str, **options: Any) -> Plan:
    return make_plan(migrations(names), history(applied), **options)


def states(made: Plan) -> dict[str, str]:
    return {step.name: step.state for step in made.steps}


class TestStates:
    def test_everything_is_pending_without_a_history(self) -> None:
        assert plan("abc", "").pending == ("a", "b", "c")

    def test_what_follows_the_last_applied_one_is_pending(self) -> None:
        made = plan("abcd", "ab")

        assert made.applied == ("a", "b")
        assert made.pending == ("c", "d")

    def test_gap_in_the_history_is_reported_as_missed(self) -> None:
        assert plan("abcd", "ac").missed == ("b",)

    def test_last_applied_is_the_furthest_in_folder_order_not_in_the_history(self) -> None:
        made = plan("abcd", "ca")

        assert states(made) == {"a": "applied", "b": "missed", "c": "applied", "d": "pending"}

    def test_name_the_folder_lacks_is_reported_as_unknown(self) -> None:
        made = plan("ab", "ax")

        assert made.unknown == ("x",)
        assert made.pending == ("b",)

    def test_unknown_steps_come_last_and_never_run(self) -> None:
        last = plan("ab", "ax").steps[-1]

        assert (last.name, last.state, last.will_run) == ("x", "unknown", False)

    def test_record_of_another_code_is_reported_as_changed_and_does_not_run(self) -> None:
        made = make_plan(migrations("ab"), History((Record("a", "default", "1:other"),)))

        assert made.changed == ("a",)
        assert made.applied == ()
        assert made.to_run == ("b",)

    def test_changed_one_counts_as_the_last_applied(self) -> None:
        made = make_plan(migrations("ab"), History((Record("b", "default", "1:other"),)))

        assert made.missed == ("a",)

    def test_record_without_a_digest_is_never_changed(self) -> None:
        assert plan("a", "a").applied == ("a",)

    def test_step_has_the_title_and_digest_of_its_migration(self) -> None:
        [step] = plan("a", "").steps

        assert (step.title, step.digest) == ("Title of a", "1:a")


class TestSets:
    def test_same_name_of_another_set_does_not_count(self) -> None:
        made = make_plan(migrations("a"), History((Record("a", "library"),)), set_name="app")

        assert made.to_run == ("a",)

    def test_record_of_another_set_is_not_unknown(self) -> None:
        made = make_plan(migrations("a"), History((Record("x", "library"),)), set_name="app")

        assert made.unknown == ()

    def test_same_name_without_a_set_counts(self) -> None:
        assert make_plan(migrations("a"), history("a"), set_name="app").applied == ("a",)


def numbered(codes: dict[str, str]) -> list[Migration]:
    return [Migration(name, lambda ckpt: ckpt, digest=f"1:{code}") for name, code in codes.items()]


class TestRenamed:
    def test_unknown_record_with_a_files_digest_is_that_file_renamed(self) -> None:
        made = make_plan(migrations("abc"), History((Record("old", "default", "1:b"),)))

        assert made.renamed == (("old", "b"),)
        assert states(made) == {"a": "missed", "b": "applied", "c": "pending"}

    def test_digest_of_another_sets_record_renames_nothing(self) -> None:
        made = make_plan(migrations("ab"), History((Record("old", "library", "1:b"),)))

        assert made.renamed == ()
        assert made.to_run == ("a", "b")

    def test_old_name_left_beside_the_new_one_is_a_renaming_and_not_unknown(self) -> None:
        records = (Record("old", "default", "1:a"), Record("a", "default", "1:a"))

        made = make_plan(migrations("a"), History(records), policy="strict")

        assert made.renamed == (("old", "a"),)
        assert made.unknown == ()

    def test_two_files_of_one_digest_take_one_record_each(self) -> None:
        twins = [Migration(name, lambda ckpt: ckpt, digest="1:same") for name in "ab"]
        records = (Record("x", "default", "1:same"), Record("y", "default", "1:same"))

        made = make_plan(twins, History(records))

        assert made.renamed == (("x", "a"), ("y", "b"))

    def test_file_with_a_record_leaves_the_renaming_to_its_twin(self) -> None:
        twins = [Migration(name, lambda ckpt: ckpt, digest="1:same") for name in "ab"]
        records = (Record("a", "default", "1:same"), Record("x", "default", "1:same"))

        assert make_plan(twins, History(records)).renamed == (("x", "b"),)

    def test_renumbered_files_are_renamed_though_their_old_names_are_taken(self) -> None:
        records = (Record("1", "default", "1:a"), Record("2", "default", "1:b"))

        made = make_plan(numbered({"1": "new", "2": "a", "3": "b"}), History(records))

        assert made.renamed == (("1", "2"), ("2", "3"))
        assert states(made) == {"1": "changed", "2": "applied", "3": "applied"}

    def test_edited_file_is_no_renaming_where_its_old_code_stands_under_a_name_of_its_own(
        self,
    ) -> None:
        records = (Record("1", "default", "1:a"), Record("2", "default", "1:a"))

        made = make_plan(numbered({"1": "new", "2": "a"}), History(records))

        assert made.renamed == ()
        assert states(made) == {"1": "changed", "2": "applied"}

    def test_renaming_alone_is_work(self) -> None:
        made = make_plan(migrations("a"), History((Record("old", "default", "1:a"),)))

        assert made.to_run == ()
        assert made.has_work


class TestPolicies:
    @pytest.mark.parametrize(
        ("policy", "to_run"),
        [("skip-missed", ("d",)), ("run-missed", ("b", "d"))],
    )
    def test_missed_one_runs_only_if_the_policy_says_so(
        self, policy: Policy, to_run: tuple[str, ...]
    ) -> None:
        assert plan("abcd", "ac", policy=policy).to_run == to_run

    @pytest.mark.parametrize(
        ("before", "match"),
        [
            pytest.param(history("b"), "missed: a", id="missed"),
            pytest.param(history("ax"), "unknown: x", id="unknown"),
            pytest.param(History((Record("a", "default", "1:other"),)), "changed: a", id="changed"),
        ],
    )
    def test_strict_refuses_what_differs_from_the_folder(self, before: History, match: str) -> None:
        with pytest.raises(HistoryRefused, match=match) as caught:
            make_plan(migrations("ab"), before, policy="strict")

        assert caught.value.plan.steps

    @pytest.mark.parametrize("applied", ["", "a", "ab"])
    def test_strict_accepts_a_history_that_is_the_folders_beginning(self, applied: str) -> None:
        assert plan("ab", applied, policy="strict").applied == tuple(applied)

    def test_policy_that_does_not_exist_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="none of skip-missed, strict, run-missed"):
            plan("a", "", policy="run_missed")

    def test_two_migrations_of_one_name_are_an_error(self) -> None:
        with pytest.raises(ValueError, match="Two migrations have one name: a"):
            plan("aba", "")


class TestUnknownHistory:
    @pytest.mark.parametrize("policy", POLICIES)
    def test_history_that_names_none_of_the_migrations_is_refused(self, policy: Policy) -> None:
        with pytest.raises(HistoryRefused, match="names none of the migrations") as caught:
            plan("ab", "xy", policy=policy)

        assert caught.value.plan.unknown == ("x", "y")

    @pytest.mark.parametrize("policy", POLICIES)
    def test_refused_history_is_accepted_if_allowed(self, policy: Policy) -> None:
        made = plan("ab", "xy", policy=policy, allow_unknown_history=True)

        assert made.to_run == ("a", "b")

    def test_empty_set_refuses_a_history_too(self) -> None:
        with pytest.raises(HistoryRefused):
            plan("", "x")

    def test_empty_history_is_never_refused(self) -> None:
        assert plan("ab", "", policy="strict").to_run == ("a", "b")

    def test_history_of_another_set_alone_is_not_refused(self) -> None:
        before = History((Record("x", "library"),))

        assert make_plan(migrations("a"), before, set_name="app").to_run == ("a",)

    def test_allowing_it_waives_no_other_objection_of_strict(self) -> None:
        with pytest.raises(HistoryRefused, match="missed: a"):
            plan("ab", "bx", policy="strict", allow_unknown_history=True)


class TestTo:
    def test_nothing_runs_past_the_named_migration(self) -> None:
        made = plan("abcd", "a", to="b")

        assert made.to_run == ("b",)
        assert made.pending == ("b", "c", "d")

    def test_missed_one_past_the_named_migration_does_not_run(self) -> None:
        assert plan("abcd", "d", to="b", policy="run-missed").to_run == ("a", "b")

    def test_nothing_runs_if_the_named_migration_is_applied(self) -> None:
        assert plan("abc", "b", to="b").to_run == ()

    def test_name_that_is_none_of_the_set_is_an_error(self) -> None:
        with pytest.raises(UnknownMigration, match=r"no migration 'x'.*has: a, b") as caught:
            plan("ab", "", to="x")

        assert caught.value.name == "x"
        assert caught.value.names == ("a", "b")


class TestWarnings:
    def test_nothing_to_say_says_nothing(self) -> None:
        assert plan("ab", "a").warnings == ()

    def test_each_kind_of_difference_is_a_sentence(self) -> None:
        records = (
            Record("x"),
            Record("old", "default", "1:a"),
            Record("c", "default", "1:other"),
        )

        made = make_plan(migrations("abc"), History(records))

        assert made.warnings == (
            "Missed, and will not run: b.",
            "In the history, but not in the folder: x.",
            "Edited since they were applied, and will not run again: c.",
            "Renamed: old is now a.",
        )

    def test_missed_one_that_will_run_is_no_warning(self) -> None:
        assert plan("ab", "b", policy="run-missed").warnings == ()

    def test_long_list_is_cut_with_a_count(self) -> None:
        [warning] = plan("a", "abcdefgh").warnings

        assert warning.endswith("b, c, d, e, f and 2 more.")


def test_plan_becomes_json_with_every_list() -> None:
    made = plan("abcd", "acx", set_digest="1:00", to="d")

    data = json.loads(json.dumps(made.to_dict()))

    assert data["steps"][1] == {
        "name": "b",
        "title": "Title of b",
        "digest": "1:b",
        "state": "missed",
        "will_run": False,
    }
    del data["steps"], data["warnings"]
    assert data == {
        "set": "default",
        "set_digest": "1:00",
        "policy": "skip-missed",
        "to": "d",
        "applied": ["a", "c"],
        "pending": ["d"],
        "missed": ["b"],
        "unknown": ["x"],
        "changed": [],
        "to_run": ["d"],
        "renamed": [],
    }

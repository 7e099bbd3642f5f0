from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch

from migrate_ckpt.errors import InvalidHistory, MigrationFailed
from migrate_ckpt.foreign import made_by
from migrate_ckpt.history import (
    History,
    Record,
    ckpt_migration_key,
    read_history,
    records_key,
    write_history,
)
from migrate_ckpt.in_memory import migrate_ckpt
from migrate_ckpt.migration import CkptType, Migration
from migrate_ckpt.plan import make_plan
from migrate_ckpt.report import Report
from migrate_ckpt.runner import run_plan

HERE = Path(__file__).name


def keep(ckpt: CkptType) -> CkptType:
    return ckpt


def migration(name: str, callback: Callable[..., Any] = keep) -> Migration:
    return Migration(name, callback, digest=f"1:{name}")


def run(
    ckpt: CkptType, *migrations: Migration, in_metadata: bool = True, **options: Any
) -> tuple[CkptType, Report]:
    plan = make_plan(migrations, read_history(ckpt), **options)
    return run_plan(ckpt, plan, migrations, history_in_metadata=in_metadata)


class TestRunning:
    def test_report_tells_what_ran_and_for_how_long(self) -> None:
        _, report = run({}, migration("a"), migration("b"))

        assert report.ran == ("a", "b")
        assert len(report.seconds) == 2
        assert min(report.seconds) >= 0

    def test_history_names_the_set_and_the_digest_of_what_ran(self) -> None:
        ckpt, _ = run({}, migration("a"), set_name="app")

        assert read_history(ckpt).records == (Record("a", "app", "1:a"),)

    def test_list_of_functions_leaves_the_names_alone_in_the_history(self) -> None:
        ckpt, _ = run({}, Migration("a", keep))

        assert ckpt == {ckpt_migration_key: ["a"]}

    def test_history_is_written_in_folder_order(self) -> None:
        ckpt = {ckpt_migration_key: ["c", "a"]}

        after, _ = run(ckpt, *map(migration, "abcd"), policy="run-missed")

        assert after[ckpt_migration_key] == ["a", "b", "c", "d"]

    def test_same_name_of_two_sets_is_applied_in_both(self) -> None:
        ckpt, _ = run({}, migration("0_init"), set_name="library")

        ckpt, report = run(ckpt, migration("0_init"), set_name="app")

        assert report.ran == ("0_init",)
        assert ckpt[ckpt_migration_key] == ["0_init", "0_init"]
        for name in ("library", "app"):
            _, again = run(ckpt, migration("0_init"), set_name=name)
            assert again.ran == ()

    def test_progress_is_told_before_each_step(self) -> None:
        told: list[tuple[int, int, str]] = []
        migrations = [migration("a"), migration("b"), migration("c")]
        plan = make_plan(migrations, History((Record("a"),)))

        run_plan({}, plan, migrations, on_step=lambda *step: told.append(step))

        assert told == [(1, 2, "b"), (2, 2, "c")]

    def test_what_the_plan_warns_of_is_in_the_report(self) -> None:
        _, report = run({ckpt_migration_key: ["b"]}, *map(migration, "abc"))

        assert report.warnings == ("Missed, and will not run: a.",)

    def test_checkpoint_is_untouched_if_nothing_is_to_be_done(self) -> None:
        ckpt = {ckpt_migration_key: ["b", "a"]}

        same, _ = run(ckpt, *map(migration, "ab"))

        assert same is ckpt
        assert ckpt == {ckpt_migration_key: ["b", "a"]}


class TestRenamed:
    def renamed(self) -> CkptType:
        ckpt, _ = run({}, migration("a"), Migration("old", keep, digest="1:b"))
        return ckpt

    def test_renamed_migration_does_not_run_a_second_time(self) -> None:
        _, report = run(self.renamed(), migration("a"), migration("b"), migration("c"))

        assert report.ran == ("c",)

    def test_history_has_the_new_name_only(self) -> None:
        ckpt, _ = run(self.renamed(), migration("a"), migration("b"))

        assert ckpt[ckpt_migration_key] == ["a", "b"]
        assert read_history(ckpt).records[1] == Record("b", "default", "1:b")

    def test_history_has_the_new_name_where_others_run_after_it(self) -> None:
        ckpt, _ = run(self.renamed(), migration("a"), migration("b"), migration("c"))

        assert ckpt[ckpt_migration_key] == ["a", "b", "c"]

    def test_function_of_the_original_api_returns_the_same_object(self) -> None:
        ckpt = self.renamed()

        same, done = migrate_ckpt(ckpt, [migration("a"), migration("b")])

        assert same is ckpt
        assert done == []


class TestPlaceOfTheHistory:
    def flat(self) -> dict[str, Any]:
        return {"weight": torch.ones(1)}

    def test_new_history_of_a_flat_state_dict_goes_into_its_metadata_and_the_report_says_so(
        self,
    ) -> None:
        ckpt, report = run(self.flat(), migration("a"), migration("b"))

        assert type(ckpt) is OrderedDict
        assert list(ckpt) == ["weight"]
        assert read_history(ckpt).place == "metadata"
        assert len(report.warnings) == 1
        assert "the checkpoint is an OrderedDict now" in report.warnings[0]

    def test_ordered_dict_is_kept_without_a_word(self) -> None:
        before = OrderedDict(self.flat())

        ckpt, report = run(before, migration("a"))

        assert ckpt is before
        assert report.warnings == ()

    def test_key_can_be_forced(self) -> None:
        ckpt, _ = run(self.flat(), migration("a"), in_metadata=False)

        assert type(ckpt) is dict
        assert ckpt[ckpt_migration_key] == ["a"]

    def test_forced_key_takes_the_history_out_of_the_metadata(self) -> None:
        ckpt, _ = run(self.flat(), migration("a"))

        ckpt, _ = run(ckpt, migration("a"), migration("b"), in_metadata=False)

        assert ckpt[ckpt_migration_key] == ["a", "b"]
        assert vars(ckpt)["_metadata"] == {}

    def test_history_under_the_key_of_a_flat_state_dict_stays_there(self) -> None:
        ckpt, _ = run({**self.flat(), ckpt_migration_key: ["a"]}, *map(migration, "ab"))

        assert ckpt[ckpt_migration_key] == ["a", "b"]

    def test_history_in_metadata_stays_there(self) -> None:
        before = write_history(OrderedDict({"epoch": 1}), History((Record("a"),)), in_metadata=True)

        ckpt, _ = run(before, *map(migration, "ab"))

        assert read_history(ckpt).place == "metadata"
        assert ckpt_migration_key not in ckpt

    def test_checkpoint_unwrapped_to_its_state_dict_has_the_history_in_metadata(self) -> None:
        ckpt: CkptType = {"state_dict": self.flat(), ckpt_migration_key: ["a"]}

        ckpt, _ = run(ckpt, migration("a"), migration("b", lambda c: c["state_dict"]))

        assert list(ckpt) == ["weight"]
        assert read_history(ckpt).names == ("a", "b")

    def test_state_dict_wrapped_in_a_checkpoint_has_the_history_under_the_key(self) -> None:
        ckpt, _ = run(self.flat(), migration("a"))

        ckpt, _ = run(ckpt, migration("a"), migration("b", lambda c: {"state_dict": c}))

        assert type(ckpt) is dict
        assert ckpt[ckpt_migration_key] == ["a", "b"]


class TestHistoryAMigrationTouches:
    def test_history_dropped_with_the_key_is_put_back(self) -> None:
        ckpt, _ = run(
            {},
            migration("a"),
            migration("b", lambda ckpt: {"state_dict": {}}),
            migration("c"),
        )

        assert read_history(ckpt).records == tuple(Record(n, "default", f"1:{n}") for n in "abc")

    def test_history_dropped_with_the_metadata_is_put_back(self) -> None:
        ckpt, _ = run({"w": torch.ones(1)}, migration("a"))

        ckpt, _ = run(ckpt, migration("a"), migration("b", lambda c: {"v": c["w"]}))

        assert list(ckpt) == ["v"]
        assert read_history(ckpt).names == ("a", "b")

    def test_names_rewritten_on_purpose_are_the_history_from_there_on(self) -> None:
        def number_the_names(ckpt: CkptType) -> CkptType:
            old = ckpt[ckpt_migration_key]
            ckpt[ckpt_migration_key] = [f"{i}_{name}" for i, name in enumerate(old, 1)]
            return ckpt

        ckpt, report = run(
            {ckpt_migration_key: ["x", "y"]},
            migration("0_number", number_the_names),
            migration("1_x", lambda ckpt: {**ckpt, "ran": True}),
            migration("3_z"),
            allow_unknown_history=True,
        )

        assert ckpt[ckpt_migration_key] == ["0_number", "1_x", "2_y", "3_z"]
        assert "ran" not in ckpt
        assert report.ran == ("0_number", "3_z")
        assert report.applied == ("0_number", "1_x", "3_z")
        assert report.warnings[-1].endswith("wrote it into the history: 1_x.")

    def test_list_changed_in_place_is_respected(self) -> None:
        def forget(ckpt: CkptType) -> CkptType:
            ckpt[ckpt_migration_key].remove("x")
            return ckpt

        ckpt, _ = run({ckpt_migration_key: ["a", "x"]}, migration("a"), migration("b", forget))

        assert ckpt[ckpt_migration_key] == ["a", "b"]

    def test_set_and_digest_are_kept_if_only_the_records_are_dropped(self) -> None:
        def drop_records(ckpt: CkptType) -> CkptType:
            del ckpt[records_key]
            return ckpt

        ckpt, _ = run({}, migration("a"), migration("b", drop_records))

        assert read_history(ckpt).records[0] == Record("a", "default", "1:a")

    def test_unusable_history_left_behind_is_that_migrations_failure(self) -> None:
        with pytest.raises(MigrationFailed, match=r"b .*it left an unusable history") as caught:
            run({}, migration("a"), migration("b", lambda c: {**c, ckpt_migration_key: "b"}))

        assert isinstance(caught.value.__cause__, InvalidHistory)


class TestFailure:
    def test_failure_names_the_migration_its_place_and_what_had_run(self) -> None:
        def fail(ckpt: CkptType) -> CkptType:
            return {"x": ckpt["not there"]}

        with pytest.raises(MigrationFailed) as caught:
            run({}, migration("a"), migration("b", fail), migration("c"))

        error = caught.value
        assert (error.name, error.position, error.count) == ("b", 2, 3)
        assert error.report.ran == ("a",)
        assert error.report.pending == ("b", "c")
        assert isinstance(error.__cause__, KeyError)

    def test_failure_names_the_file_and_the_line(self) -> None:
        def fail(ckpt: CkptType) -> CkptType:
            raise ValueError("too old")

        line = fail.__code__.co_firstlineno + 1

        with pytest.raises(MigrationFailed) as caught:
            run({}, migration("a", fail))

        assert str(caught.value) == (
            f"The migration a (1 of 1) failed in {HERE}, line {line}: ValueError: too old"
        )

    def test_handle_without_return_is_a_failure_that_says_so(self) -> None:
        with pytest.raises(MigrationFailed, match=f"in {HERE}, .*returned nothing.*return ckpt"):
            run({}, migration("a", lambda ckpt: None))

    @pytest.mark.parametrize(
        ("value", "kind"),
        [
            ([], "list"),
            (MappingProxyType({}), "mappingproxy"),
            (made_by("models.net.Net", is_new=True), "Net"),
        ],
        ids=["a list", "an immutable mapping", "a foreign object"],
    )
    def test_handle_that_returns_no_checkpoint_is_a_failure_that_says_so(
        self, value: Any, kind: str
    ) -> None:
        with pytest.raises(MigrationFailed, match=f"in {HERE}, .*returned a {kind}"):
            run({}, migration("a", lambda ckpt: value))

    def test_migration_that_exits_has_failed(self) -> None:
        def leave(ckpt: CkptType) -> CkptType:
            raise SystemExit(1)

        with pytest.raises(MigrationFailed, match="SystemExit: 1"):
            run({}, migration("a", leave))

    def test_interrupt_passes(self) -> None:
        def interrupt(ckpt: CkptType) -> CkptType:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run({}, migration("a", interrupt))

    def test_callback_that_is_no_function_is_named_all_the_same(self) -> None:
        class Handle:
            def __call__(self, ckpt: CkptType) -> CkptType:
                raise ValueError

        with pytest.raises(MigrationFailed, match=r"^The migration a \(1 of 1\) failed: ValueErr"):
            run({}, migration("a", Handle()))

    def test_checkpoint_passed_in_is_as_it_was_after_a_failure(self) -> None:
        def spoil(ckpt: CkptType) -> CkptType:
            ckpt["w"].zero_()
            raise ValueError

        ckpt = {"w": torch.ones(1)}

        with pytest.raises(MigrationFailed):
            migrate_ckpt(ckpt, [migration("a"), migration("b", spoil)])

        assert list(ckpt) == ["w"]
        assert ckpt["w"].tolist() == [1]

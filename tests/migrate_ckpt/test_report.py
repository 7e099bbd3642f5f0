from __future__ import annotations

import json
from dataclasses import replace

import pytest

from migrate_ckpt.history import History, Record
from migrate_ckpt.migration import Migration
from migrate_ckpt.plan import Plan, Policy, make_plan
from migrate_ckpt.report import Report


def plan(names: list[str], applied: list[str], policy: Policy = "skip-missed") -> Plan:
    migrations = [Migration(name, lambda ckpt: ckpt) for name in names]
    history = History(tuple(Record(name) for name in applied))
    return make_plan(migrations, history, set_digest="1:00", policy=policy)


LONG = plan([f"{i:04}_rename_the_encoder" for i in range(500)], [])


class TestStatesAfterTheRun:
    def test_what_ran_is_applied_and_no_longer_pending(self) -> None:
        report = Report(plan([*"abc"], ["a"]), ran=("b",))

        assert report.applied == ("a", "b")
        assert report.pending == ("c",)

    def test_missed_one_that_ran_is_no_longer_missed(self) -> None:
        report = Report(plan([*"abc"], ["b"], "run-missed"), ran=("a", "c"))

        assert report.missed == ()
        assert report.applied == ("a", "b", "c")

    def test_one_that_a_migration_recorded_is_applied_although_it_did_not_run(self) -> None:
        report = Report(plan([*"ab"], []), ran=("a",), recorded=("b",))

        assert report.applied == ("a", "b")
        assert report.pending == ()


class TestDict:
    def test_report_becomes_json_with_all_its_keys(self) -> None:
        report = Report(
            plan([*"abc"], ["b"]), ran=("c",), seconds=(0.1,), source={"size": 1}, fingerprint="f"
        )

        data = json.loads(json.dumps(report.to_dict()))

        assert [step["state"] for step in data.pop("steps")] == ["missed", "applied", "pending"]
        assert data == {
            "set": "default",
            "set_digest": "1:00",
            "policy": "skip-missed",
            "to": None,
            "ran": ["c"],
            "not_applicable": [],
            "applied": ["b", "c"],
            "pending": [],
            "missed": ["a"],
            "unknown": [],
            "changed": [],
            "renamed": [],
            "optimizer": {"followed": [], "not_followed": []},
            "warnings": [],
            "source": {"size": 1},
            "target": None,
            "bytes_verified": None,
            "fingerprint": "f",
        }

    def test_time_does_not_make_two_reports_differ(self) -> None:
        report = Report(plan(["a"], []), ran=("a",), seconds=(0.1,))

        assert replace(report, seconds=(0.2,)).to_dict() == report.to_dict()


class TestHeader:
    def test_short_report_is_one_line_of_json(self) -> None:
        report = Report(
            plan(["0001_x"], []),
            ran=("0001_x",),
            optimizer_not_followed=("0001_x",),
            warnings=("It was cut.",),
            fingerprint="f",
        )

        assert json.loads(report.to_header()) == {
            "ran": ["0001_x"],
            "not_applicable": [],
            "pending": [],
            "missed": [],
            "unknown": [],
            "changed": [],
            "optimizer_not_followed": ["0001_x"],
            "warnings": ["It was cut."],
            "set": "default",
            "set_digest": "1:00",
            "fingerprint": "f",
        }

    def test_name_in_any_script_is_ascii(self) -> None:
        header = Report(plan(["0001_größe"], []), ran=("0001_größe",)).to_header()

        assert header.isascii()
        assert header.isprintable()
        assert json.loads(header)["ran"] == ["0001_größe"]

    def test_long_warnings_do_not_cost_the_names(self) -> None:
        report = Report(plan(["a", "b"], []), ran=("a", "b"), warnings=("x" * 1500, "y" * 1500))

        data = json.loads(report.to_header())

        assert (data["ran"], data["warnings"]) == (["a", "b"], ["x" * 1500])
        assert data["counts"]["warnings"] == 2

    @pytest.mark.parametrize("max_bytes", [400, 2048, 10_000])
    def test_long_report_is_cut_to_the_limit_and_says_so(self, max_bytes: int) -> None:
        report = Report(LONG, ran=LONG.pending[:400])

        header = report.to_header(max_bytes)

        assert len(header) <= max_bytes
        data = json.loads(header)
        assert data["truncated"] is True
        assert data["counts"] == {
            "ran": 400,
            "not_applicable": 0,
            "pending": 100,
            "missed": 0,
            "unknown": 0,
            "changed": 0,
            "optimizer_not_followed": 0,
            "warnings": 0,
        }
        assert data["ran"] == list(report.ran[: len(data["ran"])])

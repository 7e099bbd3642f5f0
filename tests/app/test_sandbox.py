from __future__ import annotations

import json

import pytest

from app.forkserver_process import environment
from app.sandbox import RunEnd, _take_event

LINES = [
    {"step": [1, 2, "0001_a"]},
    {"step": [2, 2, "0002_b"]},
    {"exit": {"status": -9, "reason": "timeout", "peak_bytes": 7, "output": "bye"}},
]


def test_events_add_up_to_how_a_run_ended() -> None:
    end = RunEnd()

    for event in LINES:
        end = _take_event(end, json.dumps(event).encode() + b"\n")

    assert end == RunEnd(-9, "timeout", "bye", (2, 2, "0002_b"), 7)


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b'{"step": [1, 2, "00\n',
        b"[1, 2]\n",
        b'"step"\n',
        b'{"step": 7}\n',
        b'{"step": [1, "2", "x"]}\n',
        b'{"exit": null}\n',
        b'{"exit": {"status": "0", "reason": null, "output": ""}}\n',
        b"\xff\xfe\n",
    ],
)
def test_line_that_is_no_event_says_nothing(line: bytes) -> None:
    assert _take_event(RunEnd(), line) == RunEnd()


def test_run_that_nobody_says_the_end_of_was_lost() -> None:
    assert RunEnd().reason == "sandbox_lost"


def test_environment_of_runs_holds_nothing_that_was_not_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("MIGRATE_CKPT_POLICY", "strict")

    passed_on = environment()

    assert passed_on["PYTHONHASHSEED"] == "0"
    assert "hunter2" not in passed_on.values()
    assert not [name for name in passed_on if name.startswith("MIGRATE_CKPT_")]

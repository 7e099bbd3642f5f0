from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from app.logs import JsonFormatter, SeldomFilter, TextFormatter, clean, log_config, request_context


@pytest.fixture(autouse=True)
def context() -> Iterator[None]:
    token = request_context.set({"request_id": "abc"})
    yield
    request_context.reset(token)


def record(message: str, *values: object, **facts: Any) -> logging.LogRecord:
    made = logging.LogRecord("app.x", logging.WARNING, __file__, 1, message, values, None)
    made.created, made.msecs = 1_700_000_000.25, 250.0
    made.facts = facts
    return made


def failure() -> logging.LogRecord:
    made = record("it failed")
    try:
        raise ValueError("evil\x1b[2J\nline")
    except ValueError:
        made.exc_info = sys.exc_info()
    return made


def test_json_line_holds_the_message_the_request_and_the_facts() -> None:
    line = JsonFormatter().format(record("%s bytes", 7, status=200, ran=["0001_a"]))

    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "warning",
        "logger": "app.x",
        "message": "7 bytes",
        "request_id": "abc",
        "status": 200,
        "ran": ["0001_a"],
    }


def test_text_line_holds_the_same() -> None:
    line = TextFormatter().format(record("%s bytes", 7, status=200, detail="so it is"))

    assert line == (
        "2023-11-14T22:13:20.250Z WARNING app.x: 7 bytes "
        'status=200 detail="so it is" request_id=abc'
    )


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
@pytest.mark.parametrize(
    "evil", ["\x1b[2J", "a\rb", "\x00", "\u202e", "\u2028", "\x9b1m", "\ud800", "a\tb"]
)
def test_control_character_never_reaches_the_log(formatter: logging.Formatter, evil: str) -> None:
    line = formatter.format(record("said %s", evil, detail=evil, ran=[evil]))

    assert line.isprintable()
    said = json.loads(line)["message"] if line.startswith("{") else line
    assert said.isprintable()


def test_line_that_a_client_makes_up_is_marked_in_text_and_no_line_in_json() -> None:
    forged = record("said %s", "x\n2023-11-14T22:13:20.250Z INFO app: all is well")

    text = TextFormatter().format(forged).splitlines()
    assert text[1].startswith("    | 2023")
    assert len(JsonFormatter().format(forged).splitlines()) == 1


def test_traceback_is_told_and_is_clean() -> None:
    told = json.loads(JsonFormatter().format(failure()))["exception"]

    assert "Traceback" in told
    assert told.endswith("ValueError: evil\\x1b[2J\nline")
    assert "\n    | ValueError: evil" in TextFormatter().format(failure())


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer s3cr3t-token",
        "{'authorization': 'bearer s3cr3t-token'}",
        "the token mck_s3cr3t-tokenAAAA was used",
    ],
)
def test_token_never_reaches_the_log(text: str) -> None:
    assert "s3cr3t" not in clean(text)
    assert "[removed]" in clean(text)


def test_long_text_is_cut() -> None:
    assert len(clean("x" * 10**6)) < 20_000


@pytest.mark.parametrize(
    ("format", "is_terminal", "expected"),
    [
        ("auto", True, TextFormatter),
        ("auto", False, JsonFormatter),
        ("json", True, JsonFormatter),
        ("text", False, TextFormatter),
    ],
)
def test_format_is_the_one_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, format: Any, is_terminal: bool, expected: type
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)

    assert log_config(format, "info")["formatters"]["one"]["()"] is expected


def test_library_that_repeats_itself_is_heard_once_a_minute() -> None:
    now = 0.0
    seldom = SeldomFilter(lambda: now)

    def is_heard(name: str, level: int) -> bool:
        return bool(seldom.filter(logging.LogRecord(name, level, "f", 1, "it is away", (), None)))

    exporter = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
    assert is_heard(exporter, logging.WARNING)
    assert not is_heard(exporter, logging.WARNING)
    assert is_heard(exporter, logging.ERROR)
    assert [is_heard("app.requests", logging.ERROR) for _ in range(2)] == [True, True]
    now = 59.0
    assert not is_heard(exporter, logging.WARNING)
    now = 61.0
    assert is_heard(exporter, logging.WARNING)

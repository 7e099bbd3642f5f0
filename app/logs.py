"""The log: lines of JSON for programs or of text for people, and nothing in them that a client can break them with."""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, Literal

LogFormat = Literal["auto", "json", "text"]
LogLevel = Literal["debug", "info", "warning", "error"]

# What each line says while a request is seen to: its id, and that of its trace.
request_context: ContextVar[Mapping[str, str]] = ContextVar("request_context")

MAX_TEXT_CHARACTERS = 16_384

# Authorization headers, and tokens as `python -m app token` makes them.
_SECRET = re.compile(r"(?i)(\bbearer\s+)[^\s\"',;]+|\bmck_[a-z0-9_-]{8,}")


# A collector that is away, or headers that are none: libraries say so each time.
SELDOM = "opentelemetry."
SELDOM_SECONDS = 60.0


class SeldomFilter(logging.Filter):
    """Lets each logger of a library that repeats itself say one thing of a level a minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._said: dict[tuple[str, int], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith(SELDOM):
            return True
        what, now = (record.name, record.levelno), self._clock()
        if now - self._said.get(what, -math.inf) < SELDOM_SECONDS:
            return False
        self._said[what] = now
        return True


class JsonFormatter(logging.Formatter):
    """One JSON object a line, in ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(
            {
                "time": timestamp(record),
                "level": record.levelname.lower(),
                "logger": record.name,
                "message": clean(record.getMessage()),
                **request_context.get({}),
                **_facts(record),
                **self._exception(record),
            },
            default=str,
        )

    def _exception(self, record: logging.LogRecord) -> dict[str, str]:
        if not record.exc_info:
            return {}
        return {"exception": clean(self.formatException(record.exc_info))}


class TextFormatter(logging.Formatter):
    """One line to read; what a message says on further lines is marked as its own."""

    def format(self, record: logging.LogRecord) -> str:
        facts = {**_facts(record), **request_context.get({})}
        parts = [
            timestamp(record),
            f"{record.levelname:<7}",
            f"{record.name}:",
            clean(record.getMessage()),
            *(f"{name}={_shown(value)}" for name, value in facts.items()),
        ]
        text = " ".join(parts)
        if record.exc_info:
            text += "\n" + clean(self.formatException(record.exc_info))
        return text.rstrip("\n").replace("\n", "\n    | ")


def log_config(format: LogFormat, level: LogLevel) -> dict[str, Any]:
    """Return the logging of the whole process, the server's own included, on standard error."""
    is_text = format == "text" or (format == "auto" and sys.stderr.isatty())
    formatter = TextFormatter if is_text else JsonFormatter
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"one": {"()": formatter}},
        "filters": {"seldom": {"()": SeldomFilter}},
        "handlers": {
            "one": {
                "class": "logging.StreamHandler",
                "formatter": "one",
                "filters": ["seldom"],
                "stream": "ext://sys.stderr",
            }
        },
        # Other people's libraries are heard when something is wrong.
        "root": {"handlers": ["one"], "level": "WARNING"},
        "loggers": {
            "app": {"level": level.upper()},
            "migrate_ckpt": {"level": level.upper()},
            "uvicorn": {"level": level.upper()},
            # It quotes the headers of clients that it cannot read.
            "opentelemetry.trace": {"level": "ERROR"},
        },
    }


def timestamp(record: logging.LogRecord) -> str:
    """Return when it was said, in UTC, to the millisecond (RFC 3339)."""
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


def clean(text: str) -> str:
    """Return the text without what moves a terminal or lets somebody in, cut where it is long."""
    if len(text) > MAX_TEXT_CHARACTERS:
        text = f"{text[:MAX_TEXT_CHARACTERS]}…"
    text = _SECRET.sub(lambda found: f"{found[1] or ''}[removed]", text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else _escape(c) for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    facts: Mapping[str, Any] = getattr(record, "facts", {})
    return {name: _clean_value(value) for name, value in facts.items()}


def _clean_value(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        return [_clean_value(item) for item in value]
    return value


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return json.dumps(text) if " " in text or "\n" in text else text

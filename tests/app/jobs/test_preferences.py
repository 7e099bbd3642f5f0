"""What Prefer and Idempotency-Key say."""

from __future__ import annotations

import pytest

from app.errors import ServiceError
from app.jobs.preferences import (
    MAX_WAIT_SECONDS,
    Preferences,
    read_idempotency_key,
    read_preferences,
)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        pytest.param([], Preferences(), id="none"),
        pytest.param(["respond-async"], Preferences(is_async=True), id="at once"),
        pytest.param(["respond-async, wait=10"], Preferences(True, 10), id="one header"),
        pytest.param(["Respond-Async", "wait=10"], Preferences(True, 10), id="two headers"),
        pytest.param(["wait=10, wait=20"], Preferences(False, 10), id="the first counts"),
        pytest.param(["wait=soon, wait=-1"], Preferences(), id="no number"),
        pytest.param(["return=minimal; foo, handling=lenient"], Preferences(), id="unknown"),
        pytest.param(["wait=999999"], Preferences(False, MAX_WAIT_SECONDS), id="too long"),
    ],
)
def test_preferences_are_read_and_unknown_ones_passed_over(
    headers: list[str], expected: Preferences
) -> None:
    assert read_preferences(headers) == expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        pytest.param(None, None, id="none"),
        pytest.param('"8e03-978e"', "8e03-978e", id="quoted"),
        pytest.param("8e03-978e", "8e03-978e", id="bare"),
        pytest.param(r'"a\"b\\c"', r'a"b\c', id="escaped"),
    ],
)
def test_idempotency_key_is_read_quoted_or_bare(header: str | None, expected: str | None) -> None:
    assert read_idempotency_key(header) == expected


@pytest.mark.parametrize("header", ["", '"', '""', '"a" b', "ä", "x" * 300])
def test_what_is_no_idempotency_key_is_refused(header: str) -> None:
    with pytest.raises(ServiceError, match="Idempotency-Key is no key"):
        read_idempotency_key(header)

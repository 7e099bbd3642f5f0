from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from app import early_answers
from app.early_answers import EarlyAnswerMiddleware

Message = dict[str, Any]


def exchange(
    headers: dict[str, str], body: Iterable[bytes], *, reads: int
) -> tuple[list[Message], int]:
    """Answer after so many reads of the body; return what was sent, and the chunks that were left."""
    chunks = list(body)

    async def receive() -> Message:
        if not chunks:
            await asyncio.Event().wait()
        chunk = chunks.pop(0)
        return {"type": "http.request", "body": chunk, "more_body": bool(chunks)}

    async def application(_scope: Any, receive: Any, send: Any) -> None:
        for _ in range(reads):
            await receive()
        await send({"type": "http.response.start", "status": 413, "headers": []})
        await send({"type": "http.response.body", "body": b"too large"})

    async def send(message: Any) -> None:
        sent.append(message)

    sent: list[Message] = []
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "headers": raw}
    asyncio.run(EarlyAnswerMiddleware(application)(scope, receive, send))
    return sent, len(chunks)


def test_answer_after_the_whole_body_goes_out_as_it_is() -> None:
    sent, _ = exchange({"content-length": "2"}, [b"a", b"b"], reads=2)

    assert sent[0]["headers"] == []
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]


def test_early_answer_is_out_before_the_rest_is_thrown_away() -> None:
    sent, left = exchange({"content-length": "3"}, [b"a", b"b", b"c"], reads=1)

    assert (b"connection", b"close") in sent[0]["headers"]
    assert (sent[1]["body"], sent[1]["more_body"]) == (b"too large", True)
    assert (sent[2]["body"], sent[2]["more_body"]) == (b"", False)
    assert left == 0


def test_body_that_waits_for_its_call_is_not_called_for() -> None:
    headers = {"content-length": "3", "expect": "100-continue"}

    sent, left = exchange(headers, [b"abc"], reads=0)

    assert (b"connection", b"close") in sent[0]["headers"]
    assert left == 1


def test_client_that_sends_no_more_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early_answers, "SILENCE_SECONDS", 0.01)

    sent, _ = exchange({"transfer-encoding": "chunked"}, [], reads=0)

    assert sent[-1]["more_body"] is False


def test_client_that_never_stops_sending_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early_answers, "LINGER_SECONDS", 0.0)

    sent, left = exchange({"content-length": "9"}, [b"abc", b"def", b"ghi"], reads=0)

    assert sent[-1]["more_body"] is False
    assert left == 3


def test_request_without_a_body_keeps_its_connection() -> None:
    sent, _ = exchange({"content-length": "0"}, [], reads=0)

    assert sent[0]["headers"] == []

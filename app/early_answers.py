"""Ends a connection well whose request is answered before its body has been read.

The rest of the body is not for us, and what follows it on the connection could not be told from it: so
the connection is closed. A client that is in the middle of sending would see it reset, and often
throw the answer away with it: so what it sends is thrown away for a moment before.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Enough for a client to notice the answer, or to finish a body that is not very large.
LINGER_SECONDS = 10.0
# One that sends nothing for so long has noticed, and waits for the end of the connection.
SILENCE_SECONDS = 1.0


class EarlyAnswerMiddleware:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _has_body(Headers(scope=scope)):
            await _Exchange(scope, receive, send).run(self.app)
        else:
            await self.app(scope, receive, send)


class _Exchange:
    """One request with a body, and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        # To ask for the body now would be to have it sent.
        self._is_body_held_back = Headers(scope=scope).get("expect", "").lower() == "100-continue"
        self._is_body_read = False
        self._has_last_word = False

    async def run(self, app: ASGIApp) -> None:
        try:
            await app(self._scope, self._take, self._give)
        finally:
            if self._has_last_word:
                await self._end()

    async def _take(self) -> Message:
        self._is_body_held_back = False
        message = await self._receive()
        self._is_body_read = self._is_body_read or not message.get("more_body", False)
        return message

    async def _give(self, message: Message) -> None:
        if not self._is_body_read:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Connection"] = "close"
            elif not message.get("more_body", False):
                # The server closes after the last message, which comes when the body has been dealt with.
                self._has_last_word = True
                message = {**message, "more_body": True}
        await self._send(message)

    async def _end(self) -> None:
        if not self._is_body_held_back:
            await self._linger()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _linger(self) -> None:
        end = time.monotonic() + LINGER_SECONDS
        with contextlib.suppress(asyncio.TimeoutError):
            while not self._is_body_read and time.monotonic() < end:
                await asyncio.wait_for(self._take(), SILENCE_SECONDS)


def _has_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"

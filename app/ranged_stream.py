"""What lies elsewhere as an answer, whole or the one range that is asked for, handed on as it comes.

Of several ranges at once none is served alone: a server may answer such a request as if it asked for
everything (RFC 9110, 14.2), and each range would be a request of its own to where the bytes are.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING

from fastapi import Response
from fastapi.responses import StreamingResponse
from starlette.datastructures import Headers

from app.errors import ServiceError

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

# The numbers of a range (RFC 9110, 14.1.2): from-to, from-, or -how many of the last.
_ONE = re.compile(r"\s*(\d*)-(\d*)\s*", re.ASCII)

Read = Callable[[int, int], AsyncIterator[bytes]]
"""Hands out so many bytes (the second number) from an offset on (the first)."""


class RangedStream(Response):
    def __init__(
        self, read: Read, size: int, *, headers: Mapping[str, str], media_type: str
    ) -> None:
        super().__init__(
            headers={"Accept-Ranges": "bytes", "Content-Length": str(size), **headers},
            media_type=media_type,
        )
        self._read = read
        self._size = size

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            await super().__call__(scope, receive, send)
            return
        found = self._range(Headers(scope=scope))
        offset, count = found or (0, self._size)
        if found is not None:
            self.status_code = 206
            self.headers["Content-Range"] = f"bytes {offset}-{offset + count - 1}/{self._size}"
            self.headers["Content-Length"] = str(count)
        content = await _begun(self._read(offset, count))
        await StreamingResponse(content, self.status_code, self.headers)(scope, receive, send)

    def _range(self, asked: Headers) -> tuple[int, int] | None:
        """Return the range that these headers ask for, if they ask for one of just this result."""
        if "range" not in asked or asked.get("if-range") not in (None, self.headers.get("etag")):
            return None
        return read_range(asked["range"], self._size)


async def _begun(blocks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Return the same blocks, the first of which is here: what cannot be had is said before the answer begins."""
    first = await anext(blocks, b"")

    async def all_of_them() -> AsyncIterator[bytes]:
        yield first
        async for block in blocks:
            yield block

    return all_of_them()


def read_range(text: str, size: int) -> tuple[int, int] | None:
    """Return offset and count of the range that a header asks for, or None for everything.

    Raises:
        ServiceError: it is no range, or has no byte of what there is.
    """
    unit, _, ranges = text.partition("=")
    if unit.strip().lower() != "bytes":
        # A unit that is not known is passed over (RFC 9110, 14.2).
        return None
    found = [_ONE.fullmatch(each) for each in ranges.split(",")]
    spans = [(match[1], match[2]) for match in found if match]
    if len(spans) != len(found) or any(not any(span) or _is_backwards(*span) for span in spans):
        raise ServiceError(
            "malformed_range",
            "The header Range is no range of bytes, as bytes=0-1023 is one.",
        )
    if len(spans) > 1:
        return None
    start, end = spans[0]
    if not start:
        count = min(int(end), size)
        offset = size - count
    else:
        offset = int(start)
        count = min(int(end) + 1 if end else size, size) - offset
    if count <= 0:
        message = f"The header Range asks for bytes that the file does not have; it has {size}."
        raise ServiceError("range_not_satisfiable", message)
    return offset, count


def _is_backwards(start: str, end: str) -> bool:
    return bool(start and end) and int(start) > int(end)

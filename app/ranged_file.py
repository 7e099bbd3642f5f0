"""A file as an answer, whole or in ranges; what cannot be had is a problem like any other."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fastapi.responses import FileResponse
from starlette.datastructures import Headers

from app.errors import ServiceError

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

_REFUSALS = {
    400: ("malformed_range", "The header Range is no range of bytes, as bytes=0-1023 is one"),
    416: ("range_not_satisfiable", "The header Range asks for bytes that the file does not have"),
}


class RangedFile(FileResponse):
    """Starlette's answer, which refuses a range in plain text, with its refusals made errors."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_or_refuse(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] in _REFUSALS:
                error_type, what = _REFUSALS[message["status"]]
                whole = Headers(raw=message["headers"]).get("content-range", "")
                size = f"; it has {whole.removeprefix('bytes */')}" if whole else ""
                raise ServiceError(error_type, f"{what}{size}.")
            await send(message)

        try:
            # What is open stays, though it expires while it is sent.
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise ServiceError("result_expired", "The result has just expired.") from error
        try:
            self.path = f"/proc/self/fd/{descriptor}"
            await super().__call__(scope, receive, send_or_refuse)
        finally:
            os.close(descriptor)

"""Bodies that are read whole: JSON, of which there is never much."""

from __future__ import annotations

from fastapi import Request

from app.errors import ServiceError


async def read_small_body(request: Request, *, max_bytes: int, what: str) -> bytes:
    """Return the body of a request.

    Args:
        request: whose body it is.
        max_bytes: what it may have.
        what: it is called so in the refusal.

    Raises:
        ServiceError: it is larger.
        ClientDisconnect: the client went before it had sent everything.
    """
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise ServiceError("too_large", f"{what} has at most {max_bytes} bytes.")
    return body

"""Two services to measure against: one written in an afternoon, and the limit of the server.

    uvicorn --app-dir benchmarks peers:naive
    uvicorn --app-dir benchmarks peers:echo

Both answer `POST /migrate`. `naive` takes a multipart part `file`, loads it with torch, renames the
keys and saves it again. `echo` writes any body to disk and sends the same bytes back.
"""

from __future__ import annotations

import copy
import io
import tempfile
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import FastAPI, Response, UploadFile

Message = MutableMapping[str, Any]

BLOCK_BYTES = 1 << 20
PREFIX = "model."

naive = FastAPI()


@naive.post("/migrate")
def migrate(file: UploadFile) -> Response:
    """Strip the prefix, the plain way: everything is in memory, several times."""
    import torch  # Here, because `echo` does without.

    checkpoint = copy.deepcopy(torch.load(file.file, map_location="cpu", weights_only=True))
    weights = checkpoint["state_dict"]
    checkpoint["state_dict"] = {key.removeprefix(PREFIX): weight for key, weight in weights.items()}
    target = io.BytesIO()
    torch.save(checkpoint, target)
    return Response(target.getvalue(), media_type="application/octet-stream")


async def echo(
    scope: Message,
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
) -> None:
    """Body to disk, the same bytes back, nothing else; a bare ASGI application."""
    if scope["type"] == "lifespan":
        return await answer_lifespan(receive, send)
    with tempfile.TemporaryFile(buffering=0) as scratch:
        has_more = True
        while has_more:
            message = await receive()
            scratch.write(message.get("body", b""))
            has_more = message.get("more_body", False)
        size = str(scratch.tell()).encode()
        scratch.seek(0)
        headers = [(b"content-length", size)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while block := scratch.read(BLOCK_BYTES):
            await send({"type": "http.response.body", "body": block, "more_body": True})
    await send({"type": "http.response.body"})


async def answer_lifespan(
    receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return

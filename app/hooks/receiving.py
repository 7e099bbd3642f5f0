"""A delivery on its way in: its bytes, held to their signature before anything in them is read."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from fastapi import Request

from app.errors import ServiceError
from app.hooks.signatures import Scheme, verify
from app.small_bodies import read_small_body

# Those of all senders are below 20 kB.
MAX_DELIVERY_BYTES = 256 * 2**10
# MLflow signs once and tries again later with the same time: a longer pause would have it come too late.
MAX_RETRY_AFTER_SECONDS = 60


class Ignored(Exception):
    """A delivery that asks for nothing; says why."""


async def receive(
    request: Request, scheme: Scheme, secrets: Sequence[str]
) -> tuple[str, dict[str, Any]]:
    """Return the id of a delivery, and what it says.

    Raises:
        ServiceError: there is no secret, so there is nothing here (404); or it is too large, not signed with one,
            not of now, or no JSON object.
        ClientDisconnect: the client went before it had sent everything.
    """
    if not secrets:
        # A hook that believes everybody does not exist.
        raise ServiceError("not_found", f"There is nothing at {request.url.path}.")
    body = await read_small_body(request, max_bytes=MAX_DELIVERY_BYTES, what="A delivery")
    delivery_id = verify(scheme, secrets, request.headers, body, now=time.time())
    try:
        said = json.loads(body)
    except ValueError as error:
        raise ServiceError("malformed_delivery", "The delivery is no JSON.") from error
    if not isinstance(said, dict):
        raise ServiceError("malformed_delivery", "The delivery is no JSON object.")
    return delivery_id, said


def come_again_soon(error: ServiceError) -> ServiceError:
    """Return the same refusal, with a pause that the sender keeps to and that does not outlast its signature."""
    pause = error.data.get("retry_after")
    if isinstance(pause, int):
        error.data["retry_after"] = min(pause, MAX_RETRY_AFTER_SECONDS)
    return error

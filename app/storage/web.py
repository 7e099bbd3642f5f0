"""Checkpoints behind addresses of the web: read with a guarded client, redirects checked one by one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import urljoin

import httpx

from app.errors import ServiceError
from app.storage.locations import WEB, InvalidLocation, Location, parse_location

MAX_REDIRECTS = 5
BLOCK_BYTES = 2**20

# Worth another try: the others are the answer.
_LATER = (408, 425, 429, 500, 502, 503, 504)


@asynccontextmanager
async def open_web(
    client: httpx.AsyncClient, location: Location, refuse: Callable[[Location], None]
) -> AsyncIterator[httpx.Response]:
    """Open what is at an address; `refuse` raises where a redirect leads to one that is not allowed.

    Raises:
        ServiceError: it cannot be had.
    """
    for _ in range(MAX_REDIRECTS + 1):
        try:
            request = client.build_request(
                "GET", location.url, headers={"Accept-Encoding": "identity"}
            )
            response = await client.send(request, stream=True)
        except httpx.HTTPError as error:
            raise unavailable(location, type(error).__name__) from error
        try:
            if not response.has_redirect_location:
                _refuse_status(location, response.status_code)
                yield response
                return
            location = _follow(location, response)
            refuse(location)
        finally:
            await response.aclose()
    raise ServiceError(
        "source_unavailable", f"{location} redirects more than {MAX_REDIRECTS} times."
    )


async def blocks_of_web(response: httpx.Response, location: Location) -> AsyncIterator[bytes]:
    try:
        # As it is sent: what would be unpacked could be of any size.
        async for block in response.aiter_raw(BLOCK_BYTES):
            yield block
    except httpx.HTTPError as error:
        raise unavailable(location, type(error).__name__) from error


def _follow(location: Location, response: httpx.Response) -> Location:
    target = urljoin(location.url, response.headers["location"])
    try:
        found = parse_location(target)
    except InvalidLocation as error:
        message = f"{location} redirects to what is no URL of a checkpoint: {error}."
        raise ServiceError("source_not_allowed", message) from error
    if found.scheme not in WEB or (location.scheme, found.scheme) == ("https", "http"):
        message = f"{location} redirects to another kind of place."
        raise ServiceError("source_not_allowed", message)
    return found


def _refuse_status(location: Location, status: int) -> None:
    if status == 200:
        return
    if status in (404, 410):
        raise ServiceError("source_not_found", f"There is nothing at {location}.")
    if status in _LATER:
        raise unavailable(location, f"status {status}")
    raise ServiceError("source_refused", f"{location} answers with status {status}.")


def unavailable(location: Location, why: str) -> ServiceError:
    """Return what is raised where another try may help."""
    message = f"{location} cannot be read at the moment: {why}."
    return ServiceError("source_unavailable", message, retryable=True)

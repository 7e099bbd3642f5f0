"""Checkpoints in buckets, by way of obstore: S3 and its like, Google Cloud Storage, Azure.

Credentials and endpoints are the operator's: they come from the variables that each provider documents
(`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, `GOOGLE_APPLICATION_CREDENTIALS`, `AZURE_STORAGE_ACCOUNT_NAME`, …),
and never from a URL.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import obstore
from obstore import exceptions
from obstore.store import from_url

from app.errors import ServiceError
from app.storage.locations import Location

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from obstore.store import ObjectStore

# S3 takes 10,000 parts of a file; the default of 5 MB would end at 50 GB.
MAX_PARTS = 9_000
MIN_PART_BYTES = 16 * 2**20
PARTS_AT_ONCE = 3
BLOCK_BYTES = 4 * 2**20

# By which a result is known again that is there already.
FINGERPRINT = "migrate-ckpt-fingerprint"

_CLIENT: Any = {
    # The endpoint is the operator's, and only where that says http it is.
    "allow_http": True,
    "connect_timeout": timedelta(seconds=10),
    "timeout": timedelta(seconds=3600),
    "user_agent": "migrate-ckpt",
}
_RETRY: Any = {"max_retries": 5, "retry_timeout": timedelta(seconds=60)}


@lru_cache(maxsize=32)
def store_of(scheme: str, bucket: str) -> ObjectStore:
    """Return the store for a bucket; it has its connections."""
    return store_at(f"{scheme}://{bucket}")


def store_at(url: str) -> ObjectStore:
    """Return a store for what lies below this URL of a bucket, or of a folder in one."""
    return from_url(url, client_options=_CLIENT, retry_config=_RETRY)


async def open_object(location: Location) -> tuple[int, AsyncIterator[bytes]]:
    """Return the size of an object and its bytes.

    Raises:
        ServiceError: there is none, or it cannot be read.
    """
    with _translated(location, "source"):
        found = await obstore.get_async(
            store_of(location.scheme, location.authority), location.path
        )
    return found.meta["size"], _blocks(location, found)


async def _blocks(location: Location, found: Any) -> AsyncIterator[bytes]:
    with _translated(location, "source"):
        async for block in found.stream(min_chunk_size=BLOCK_BYTES):
            yield bytes(block)


async def look_at_object(location: Location) -> tuple[int, str | None]:
    """Return the size of an object, and the entity tag that changes with its bytes, if the store has one.

    Raises:
        ServiceError: there is none, or it cannot be read.
    """
    with _translated(location, "source"):
        store = store_of(location.scheme, location.authority)
        meta = await obstore.head_async(store, location.path)
    return meta["size"], meta["e_tag"]


async def read_range(
    location: Location, e_tag: str, offset: int, count: int
) -> AsyncIterator[bytes]:
    """Hand out a range of an object.

    Raises:
        ServiceError: it cannot be read, or is another one by now than that with this entity tag.
    """
    try:
        with _translated(location, "source"):
            found = await obstore.get_async(
                store_of(location.scheme, location.authority),
                location.path,
                options={"range": (offset, offset + count), "if_match": e_tag},
            )
            async for block in found.stream(min_chunk_size=BLOCK_BYTES):
                yield bytes(block)
    except ServiceError as error:
        if isinstance(error.__cause__, exceptions.PreconditionError):
            message = f"{location} was changed while it was migrated; send the job again."
            raise ServiceError("source_changed", message, retryable=True) from error
        raise


async def object_fingerprint(location: Location) -> tuple[bool, str | None]:
    """Return whether there is an object, and the fingerprint that one of ours has.

    Raises:
        ServiceError: that cannot be found out.
    """
    try:
        with _translated(location, "destination"):
            store = store_of(location.scheme, location.authority)
            found = await obstore.get_async(store, location.path)
    except ServiceError as error:
        if error.error_type == "destination_not_found":
            return False, None
        raise
    fingerprint = found.attributes.get(FINGERPRINT)
    return True, None if fingerprint is None else str(fingerprint)


async def list_objects(location: Location, prefix: str) -> AsyncIterator[tuple[str, int]]:
    """Hand out the keys and sizes, in bytes, of the objects below a prefix.

    Raises:
        ServiceError: they cannot be listed.
    """
    with _translated(location, "source"):
        store = store_of(location.scheme, location.authority)
        async for batch in obstore.list(store, prefix):
            for meta in batch:
                yield meta["path"], meta["size"]


async def put_object(
    location: Location, blocks: AsyncIterator[bytes], size: int, fingerprint: str | None = None
) -> None:
    """Write an object, in parts; it is there when all of it is.

    Raises:
        ServiceError: it cannot be written.
    """
    attributes: Any = {"Content-Type": "application/octet-stream"}
    if fingerprint is not None:
        attributes[FINGERPRINT] = fingerprint
    with _translated(location, "destination"):
        await obstore.put_async(
            store_of(location.scheme, location.authority),
            location.path,
            blocks,
            attributes=attributes,
            **in_parts(size),
        )


def in_parts(size: int) -> Any:
    """Return how obstore is to write an object of this size."""
    return {
        "chunk_size": max(MIN_PART_BYTES, -(-size // MAX_PARTS)),
        "max_concurrency": PARTS_AT_ONCE,
    }


@contextmanager
def _translated(location: Location, role: str) -> Iterator[None]:
    """Say what went wrong in our words: those of the store may hold keys and addresses."""
    try:
        yield
    except (FileNotFoundError, exceptions.NotFoundError) as error:
        raise ServiceError(f"{role}_not_found", f"There is nothing at {location}.") from error
    except (
        PermissionError,
        exceptions.PermissionDeniedError,
        exceptions.UnauthenticatedError,
    ) as error:
        logger.warning("%s is refused: %s", location, _first_line(error))
        message = f"The service's credentials do not let it use {location}."
        raise ServiceError(f"{role}_refused", message) from error
    except (exceptions.BaseError, OSError) as error:
        logger.warning("%s cannot be used: %s", location, _first_line(error))
        message = f"{location} cannot be used at the moment; the log says why."
        raise ServiceError(f"{role}_unavailable", message, retryable=True) from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]

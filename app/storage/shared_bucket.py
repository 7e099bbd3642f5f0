"""The bucket that all processes of one service have in common: for uploads that wait, and for results."""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import obstore
from obstore import exceptions

from app.errors import ServiceError
from app.storage.attempts import attempts
from app.storage.buckets import BLOCK_BYTES, in_parts

if TYPE_CHECKING:
    from obstore.store import ObjectStore

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stored:
    """An object: its key, its size in bytes, and when it was written, in seconds since 1970."""

    key: str
    size: int
    written: float


class SharedBucket:
    """What is asked for and is not there is a FileNotFoundError; all else that fails may be there again later."""

    def __init__(self, store: ObjectStore, url: str) -> None:
        self._store = store
        self._url = url

    def __str__(self) -> str:
        return self._url

    async def check(self) -> None:
        """Find out whether objects can be written and removed.

        Raises:
            ServiceError: they cannot; the cause says why.
        """
        key = f"probe/{secrets.token_hex(8)}"
        try:
            with self._translated():
                await obstore.put_async(self._store, key, b"")
                await obstore.delete_async(self._store, key)
        except FileNotFoundError as error:
            raise ServiceError("results_unavailable", "There is no such bucket.") from error

    async def write(
        self, key: str, new_blocks: Callable[[], AsyncIterator[bytes]], size: int
    ) -> None:
        """Write an object, in parts; it is there when all of it is.

        Args:
            key: its name.
            new_blocks: returns its bytes, from the start each time that it is called.
            size: how many there are.

        Raises:
            ServiceError: the bucket does not answer, whatever is tried.
        """
        async for attempt in attempts():
            with attempt, self._translated():
                await obstore.put_async(self._store, key, new_blocks(), **in_parts(size))

    async def write_bytes(self, key: str, content: bytes) -> None:
        async for attempt in attempts():
            with attempt, self._translated():
                await obstore.put_async(self._store, key, content)

    async def read_bytes(self, key: str) -> bytes:
        with self._translated():
            return bytes(await (await obstore.get_async(self._store, key)).bytes_async())

    async def read(self, key: str, offset: int, count: int) -> AsyncIterator[bytes]:
        """Hand out so many bytes of an object from an offset on."""
        if not count:
            return
        with self._translated():
            found = await obstore.get_async(
                self._store, key, options={"range": (offset, offset + count)}
            )
            async for block in found.stream(min_chunk_size=BLOCK_BYTES):
                yield bytes(block)

    async def list(self, prefix: str) -> list[Stored]:
        """Return the objects below a prefix, which ends with a slash."""
        with self._translated():
            return [
                Stored(meta["path"], meta["size"], meta["last_modified"].timestamp())
                async for batch in obstore.list(self._store, prefix)
                for meta in batch
            ]

    async def remove(self, keys: Sequence[str]) -> None:
        """Remove objects; what is not there is no reason to complain."""
        for key in keys:
            try:
                with self._translated():
                    await obstore.delete_async(self._store, key)
            except FileNotFoundError:
                pass

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, exceptions.NotFoundError) as error:
            raise FileNotFoundError(str(error).partition("\n")[0]) from error
        except (exceptions.BaseError, OSError) as error:
            logger.warning("%s cannot be used: %s", self._url, str(error).partition("\n")[0])
            message = "The bucket that results are kept in cannot be used at the moment."
            raise ServiceError("results_unavailable", message, retryable=True) from error

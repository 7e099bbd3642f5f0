"""A checkpoint in a bucket of which only some ranges are fetched, into a sparse file that has the size of the whole.

Beside the file lies the list of the ranges that are in it. It is written after they are, so that a service that was
killed meanwhile goes on with what it has.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from app.copying import Tell
from app.errors import ServiceError
from app.run_request import PRESENT_NAME
from app.scratch_room import free_bytes
from app.storage import buckets
from app.storage.attempts import attempts
from app.storage.blocks import write_block
from app.storage.locations import Location
from app.threads import until_abandoned

# Below this, asking again and again takes longer than fetching all of it.
WHOLE_BYTES = 32 * 2**20
# What is fetched before anybody has asked: the beginning, and the end, where a zip has its directory.
FIRST_BYTES = 2**16
LAST_BYTES = 2**18
REQUESTS_AT_ONCE = 16
# What one request asks for at most, so that it is seen how far it is.
CHUNK_BYTES = 32 * 2**20
# As often as a run may ask for more; then it gets all there is.
MAX_ROUNDS = 8

Ranges = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class RemoteObject:
    """An object of a bucket as it was when it was looked at."""

    location: Location
    e_tag: str
    size: int

    @classmethod
    def of(cls, fetched: Mapping[str, Any], location: Location) -> RemoteObject:
        """Return the one that a job has begun to fetch."""
        return cls(location, fetched["e_tag"], fetched["size"])

    def to_fetched(self) -> dict[str, Any]:
        """Return what a job keeps of it."""
        return {"size": self.size, "digest": self.identity, "e_tag": self.e_tag}

    @property
    def identity(self) -> str:
        """What stands in the place of its SHA-256, which nobody knows who has not read all of it; in hex."""
        text = f"{self.location}\n{self.e_tag}\n{self.size}"
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class RemoteRange:
    """Bytes of an object."""

    source: RemoteObject
    offset: int
    count: int


class PartialFile:
    """A file here, with the ranges of an object in it that were fetched so far."""

    def __init__(self, source: RemoteObject, path: Path) -> None:
        self._source = source
        self._path = path
        self._list = path.with_name(PRESENT_NAME)

    def create(self) -> None:
        """Make it, with nothing in it yet."""
        self._note([])
        with self._path.open("wb") as file:
            file.truncate(self._source.size)

    async def fetch_first(self) -> int:
        """Fetch what will be needed in any case; return how many bytes that is."""
        size = self._source.size
        last = min(LAST_BYTES, size - FIRST_BYTES)
        return await self.fetch([(0, FIRST_BYTES), (size - last, last)])

    async def fetch(self, ranges: Ranges, tell: Tell = lambda _: None) -> int:
        """Fetch ranges; return how many bytes that is.

        Raises:
            ServiceError: they cannot be had, or the object is another one by now.
        """
        count = sum(length for _, length in ranges)
        if count > free_bytes(self._path.parent):
            message = f"The disk that jobs are kept on has no room for {count} bytes."
            raise ServiceError("no_space", message, retryable=True)
        free = asyncio.Semaphore(REQUESTS_AT_ONCE)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
        done = 0

        async def fetch_one(offset: int, length: int) -> None:
            nonlocal done
            async with free:
                await self._fetch(descriptor, offset, length)
            done += length
            tell(done)

        fetching = [asyncio.create_task(fetch_one(*each)) for each in _in_chunks(ranges)]
        try:
            await asyncio.gather(*fetching)
            await asyncio.to_thread(os.fdatasync, descriptor)
        finally:
            # None of them may write to what is opened under the same number next.
            for each in fetching:
                each.cancel()
            await asyncio.gather(*fetching, return_exceptions=True)
            os.close(descriptor)
        await asyncio.to_thread(self._note, [*self.present(), *ranges])
        return count

    def present(self) -> list[tuple[int, int]]:
        """Return the ranges that are in it."""
        return [(offset, count) for offset, count in json.loads(self._list.read_text("ascii"))]

    async def _fetch(self, descriptor: int, offset: int, count: int) -> None:
        async for attempt in attempts():
            with attempt:
                place = offset
                async for block in buckets.read_range(
                    self._source.location, self._source.e_tag, offset, count
                ):
                    await until_abandoned(partial(write_block, descriptor, block, place=place))
                    place += len(block)
                if place != offset + count:
                    message = f"{self._source.location} ended early."
                    raise ServiceError("source_unavailable", message, retryable=True)

    def _note(self, ranges: Iterable[tuple[int, int]]) -> None:
        beside = self._list.with_suffix(".part")
        beside.write_text(json.dumps(sorted(ranges)), "ascii")
        beside.replace(self._list)


def _in_chunks(ranges: Ranges) -> Iterator[tuple[int, int]]:
    """Yield ranges that are no longer than one request is for."""
    for offset, count in ranges:
        for start in range(0, count, CHUNK_BYTES):
            yield offset + start, min(CHUNK_BYTES, count - start)

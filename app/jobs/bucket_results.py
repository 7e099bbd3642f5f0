"""Results in a bucket that all processes of the service reach.

    results/FINGERPRINT/ID/checkpoint     the bytes
    results/FINGERPRINT/ID/result.json    what was said of it; written last, and again when it is renewed

Two processes may keep the same result at once: then it is there twice, and the newer one is found. An ID is
never used again, so nobody removes what another one has just written.
"""

from __future__ import annotations

import json
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import Response

from app.copying import Tell
from app.jobs.results import KeptResult, expired, refuse_too_large
from app.ranged_stream import RangedStream
from app.responses import Extent
from app.storage.blocks import blocks_of, write_block
from app.storage.shared_bucket import SharedBucket, Stored
from app.threads import until_abandoned

FOLDER = "results/"
CHECKPOINT_NAME = "checkpoint"
FACTS_NAME = "result.json"

# Clocks differ, and what is being written has no facts yet: nothing is removed before it has been of no use so long.
GRACE_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class BucketResult(KeptResult):
    """One whose bytes are an object."""

    bucket: SharedBucket
    key: str
    scratch_root: Path

    async def blocks(self) -> AsyncIterator[bytes]:
        async for block in self.read(0, self.size):
            yield block

    async def read(self, offset: int, count: int) -> AsyncIterator[bytes]:
        """Hand out a part of it."""
        try:
            async for block in self.bucket.read(self.key, offset, count):
                yield block
        except FileNotFoundError as error:
            raise expired() from error

    async def open(self, stack: ExitStack) -> Extent:
        file = tempfile.TemporaryFile(dir=self.scratch_root, buffering=0)  # noqa: SIM115
        stack.callback(file.close)
        async for block in self.blocks():
            await until_abandoned(partial(write_block, file.fileno(), block))
        return Extent(file.fileno(), 0, self.size)

    def answer(self, headers: Mapping[str, str], media_type: str) -> Response:
        return RangedStream(self.read, self.size, headers=headers, media_type=media_type)


class BucketResults:
    def __init__(
        self,
        bucket: SharedBucket,
        *,
        ttl_seconds: float,
        max_bytes: int,
        scratch_root: Path,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._bucket = bucket
        self._ttl_seconds = ttl_seconds
        self._max_bytes = max_bytes
        self._scratch_root = scratch_root
        self._clock = clock

    async def find(self, fingerprint: str) -> KeptResult | None:
        found = _by_id(await self._bucket.list(f"{FOLDER}{fingerprint}/"))
        whole = [each for each in found.values() if each.is_whole]
        newest = max(whole, key=lambda each: each.written, default=None)
        if newest is None or newest.written + self._ttl_seconds <= self._clock():
            return None
        try:
            facts = json.loads(await self._bucket.read_bytes(f"{newest.folder}{FACTS_NAME}"))
        except FileNotFoundError:
            return None
        return self._result(fingerprint, newest.folder, newest.size, facts, newest.written)

    async def renew(self, fingerprint: str) -> KeptResult | None:
        kept = await self.find(fingerprint)
        if kept is None:
            return None
        assert isinstance(kept, BucketResult)
        folder = kept.key.removesuffix(CHECKPOINT_NAME)
        await self._write_facts(folder, kept.facts)
        return self._result(fingerprint, folder, kept.size, kept.facts, self._clock())

    async def keep(
        self, fingerprint: str, facts: Mapping[str, Any], extents: Iterable[Extent], tell: Tell
    ) -> KeptResult:
        pieces = list(extents)
        size = sum(extent.count for extent in pieces)
        await self._make_room(size)
        folder = f"{FOLDER}{fingerprint}/{secrets.token_hex(8)}/"
        key = f"{folder}{CHECKPOINT_NAME}"
        await self._bucket.write(key, lambda: blocks_of(pieces, tell), size)
        await self._write_facts(folder, facts)
        return self._result(fingerprint, folder, size, facts, self._clock())

    async def remove_expired(self) -> None:
        now = self._clock()
        for each in _by_id(await self._bucket.list(FOLDER)).values():
            lifetime = self._ttl_seconds if each.is_whole else 0.0
            if each.written + lifetime + GRACE_SECONDS <= now:
                await self._remove(each)

    def _result(
        self, fingerprint: str, folder: str, size: int, facts: Mapping[str, Any], written: float
    ) -> BucketResult:
        return BucketResult(
            fingerprint,
            size,
            facts,
            written + self._ttl_seconds,
            self._bucket,
            f"{folder}{CHECKPOINT_NAME}",
            self._scratch_root,
        )

    async def _write_facts(self, folder: str, facts: Mapping[str, Any]) -> None:
        await self._bucket.write_bytes(f"{folder}{FACTS_NAME}", json.dumps(facts).encode("ascii"))

    async def _make_room(self, size: int) -> None:
        """Remove the oldest results until there is room for one more of this size."""
        refuse_too_large(size, self._max_bytes)
        there_are = list(_by_id(await self._bucket.list(FOLDER)).values())
        total = size + sum(each.size for each in there_are)
        for each in sorted(there_are, key=lambda each: each.written):
            if total <= self._max_bytes:
                break
            if each.is_whole:
                await self._remove(each)
                total -= each.size

    async def _remove(self, kept: _Folder) -> None:
        # First what it is found by.
        await self._bucket.remove([f"{kept.folder}{FACTS_NAME}", f"{kept.folder}{CHECKPOINT_NAME}"])


@dataclass(slots=True)
class _Folder:
    """What lies below one ID; `written` is that of its facts once they are there."""

    folder: str
    size: int = 0
    written: float = 0.0
    has_checkpoint: bool = False
    has_facts: bool = False

    @property
    def is_whole(self) -> bool:
        return self.has_checkpoint and self.has_facts

    def add(self, name: str, stored: Stored) -> None:
        if name == CHECKPOINT_NAME:
            self.size = stored.size
            self.has_checkpoint = True
        elif name == FACTS_NAME:
            self.has_facts = True
        self.written = max(self.written, stored.written)


def _by_id(objects: Iterable[Stored]) -> Mapping[str, _Folder]:
    folders: dict[str, _Folder] = {}
    for stored in objects:
        path, _, name = stored.key.rpartition("/")
        folders.setdefault(path, _Folder(f"{path}/")).add(name, stored)
    return folders

"""Results in a folder of this machine.

A result is a folder that appears whole, by a rename, or not at all. Its age is that of its facts' file.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import Response

from app.copying import FULL, Tell, copy_extents, flush
from app.errors import ServiceError
from app.jobs.results import KeptResult, expired, refuse_too_large
from app.ranged_file import RangedFile
from app.responses import Extent
from app.storage.blocks import blocks_of
from app.threads import Check, until_abandoned

CHECKPOINT_NAME = "checkpoint"
FACTS_NAME = "result.json"


@dataclass(frozen=True, slots=True)
class LocalResult(KeptResult):
    """One whose bytes lie in a file."""

    path: Path

    async def blocks(self) -> AsyncIterator[bytes]:
        with ExitStack() as stack:
            async for block in blocks_of([await self.open(stack)], lambda _: None):
                yield block

    async def open(self, stack: ExitStack) -> Extent:
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise expired() from error
        stack.callback(os.close, descriptor)
        return Extent(descriptor, 0, self.size)

    def answer(self, headers: Mapping[str, str], media_type: str) -> Response:
        return RangedFile(self.path, headers=dict(headers), media_type=media_type)


class LocalResults:
    def __init__(
        self,
        folder: Path,
        *,
        ttl_seconds: float,
        max_bytes: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._ttl_seconds = ttl_seconds
        self._max_bytes = max_bytes
        self._clock = clock
        self._lock = threading.RLock()
        folder.mkdir(mode=0o700, exist_ok=True)
        for left in folder.glob(".*"):
            shutil.rmtree(left)

    async def find(self, fingerprint: str) -> KeptResult | None:
        return await asyncio.to_thread(self._find, fingerprint)

    async def renew(self, fingerprint: str) -> KeptResult | None:
        return await asyncio.to_thread(self._renew, fingerprint)

    async def keep(
        self, fingerprint: str, facts: Mapping[str, Any], extents: Iterable[Extent], tell: Tell
    ) -> KeptResult:
        pieces = list(extents)

        def keep(check: Check) -> KeptResult:
            def check_and_tell(copied: int) -> None:
                check()
                tell(copied)

            return self._keep(fingerprint, facts, pieces, check_and_tell)

        return await until_abandoned(keep)

    async def remove_expired(self) -> None:
        await asyncio.to_thread(self._remove_expired)

    def _find(self, fingerprint: str) -> KeptResult | None:
        folder = self._folder / fingerprint
        try:
            expires = (folder / FACTS_NAME).stat().st_mtime + self._ttl_seconds
            facts = json.loads((folder / FACTS_NAME).read_bytes())
            size = (folder / CHECKPOINT_NAME).stat().st_size
        except FileNotFoundError:
            return None
        if expires <= self._clock():
            return None
        return LocalResult(fingerprint, size, facts, expires, folder / CHECKPOINT_NAME)

    def _renew(self, fingerprint: str) -> KeptResult | None:
        with self._lock:
            if self._find(fingerprint) is not None:
                now = self._clock()
                os.utime(self._folder / fingerprint / FACTS_NAME, (now, now))
            return self._find(fingerprint)

    def _keep(
        self, fingerprint: str, facts: Mapping[str, Any], extents: Sequence[Extent], tell: Tell
    ) -> KeptResult:
        self._make_room(sum(extent.count for extent in extents))
        building = Path(tempfile.mkdtemp(prefix=".", dir=self._folder))
        try:
            copy_extents(extents, building / CHECKPOINT_NAME, tell)
            return self._publish(building, fingerprint, facts)
        except OSError as error:
            if error.errno not in FULL:
                raise
            message = "There was no room for the result on the service's disk."
            raise ServiceError("no_space", message, retryable=True) from error
        finally:
            shutil.rmtree(building, ignore_errors=True)

    def _remove_expired(self) -> None:
        now = self._clock()
        for age, path in self._by_age():
            if age + self._ttl_seconds <= now:
                self._remove(path)

    def _publish(self, building: Path, fingerprint: str, facts: Mapping[str, Any]) -> KeptResult:
        (building / FACTS_NAME).write_text(json.dumps(facts), encoding="ascii")
        now = self._clock()
        os.utime(building / FACTS_NAME, (now, now))
        for path in (building / FACTS_NAME, building):
            flush(path)
        size = _size(building)
        with self._lock:
            # One name, one result: what is in its place holds the same bytes, and somebody may be reading it.
            kept = self._renew(fingerprint)
            if kept is None:
                self._remove(self._folder / fingerprint)
                os.rename(building, self._folder / fingerprint)
                path = self._folder / fingerprint / CHECKPOINT_NAME
                kept = LocalResult(fingerprint, size, facts, now + self._ttl_seconds, path)
        flush(self._folder)
        return kept

    def _make_room(self, size: int) -> None:
        """Remove the oldest results until there is room for one more of this size."""
        refuse_too_large(size, self._max_bytes)
        self._remove_expired()
        there_are = [(path, _size(path)) for _, path in sorted(self._by_age())]
        total = size + sum(size for _, size in there_are)
        for path, freed in there_are:
            if total <= self._max_bytes:
                break
            self._remove(path)
            total -= freed

    def _remove(self, path: Path) -> None:
        """Remove a result: first its name, so that nobody finds half of it."""
        removed = Path(tempfile.mkdtemp(prefix=".", dir=self._folder))
        # Another thread may have removed it.
        with self._lock, contextlib.suppress(FileNotFoundError):
            os.rename(path, removed)
        shutil.rmtree(removed, ignore_errors=True)

    def _by_age(self) -> list[tuple[float, Path]]:
        found = []
        # A name that begins with a dot is of one that is not whole yet.
        for facts in self._folder.glob(f"[!.]*/{FACTS_NAME}"):
            # Another thread may remove it just now.
            with contextlib.suppress(FileNotFoundError):
                found.append((facts.stat().st_mtime, facts.parent))
        return found


def _size(folder: Path) -> int:
    try:
        return (folder / CHECKPOINT_NAME).stat().st_size
    except FileNotFoundError:
        return 0

"""The results that are kept: each under its fingerprint, for so long, and all of them in so much of the disk.

A result is a folder that appears whole, by a rename, or not at all. Its age is that of its facts' file.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.copying import FULL, copy_extents, flush
from app.errors import ServiceError
from app.responses import Extent

CHECKPOINT_NAME = "checkpoint"
FACTS_NAME = "result.json"


@dataclass(frozen=True, slots=True)
class KeptResult:
    """One migrated checkpoint on the disk; `facts` are what was said of it when it was kept."""

    fingerprint: str
    path: Path
    size: int
    facts: Mapping[str, Any]
    expires: float


class Results:
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

    def find(self, fingerprint: str) -> KeptResult | None:
        """Return this result if it is kept, and has not expired."""
        folder = self._folder / fingerprint
        try:
            expires = (folder / FACTS_NAME).stat().st_mtime + self._ttl_seconds
            facts = json.loads((folder / FACTS_NAME).read_bytes())
            size = (folder / CHECKPOINT_NAME).stat().st_size
        except FileNotFoundError:
            return None
        if expires <= self._clock():
            return None
        return KeptResult(fingerprint, folder / CHECKPOINT_NAME, size, facts, expires)

    def renew(self, fingerprint: str) -> KeptResult | None:
        """Return this result, which from now on is kept as long as a new one."""
        with self._lock:
            if self.find(fingerprint) is not None:
                now = self._clock()
                os.utime(self._folder / fingerprint / FACTS_NAME, (now, now))
            return self.find(fingerprint)

    def keep(
        self,
        fingerprint: str,
        facts: Mapping[str, Any],
        extents: Iterable[Extent],
        *,
        on_copied: Callable[[int], None],
    ) -> KeptResult:
        """Keep a result that these extents make up.

        Args:
            fingerprint: its name.
            facts: what to say of it later, as JSON.
            extents: its bytes.
            on_copied: is told how many are there; what it raises ends the copying.

        Raises:
            ServiceError: it is too large, or the disk is full.
        """
        extents = list(extents)
        self._make_room(sum(extent.count for extent in extents))
        building = Path(tempfile.mkdtemp(prefix=".", dir=self._folder))
        try:
            copy_extents(extents, building / CHECKPOINT_NAME, on_copied)
            return self._publish(building, fingerprint, facts)
        except OSError as error:
            if error.errno not in FULL:
                raise
            message = "There was no room for the result on the service's disk."
            raise ServiceError("no_space", message, retryable=True) from error
        finally:
            shutil.rmtree(building, ignore_errors=True)

    def remove_expired(self) -> None:
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
            kept = self.renew(fingerprint)
            if kept is None:
                self._remove(self._folder / fingerprint)
                os.rename(building, self._folder / fingerprint)
                path = self._folder / fingerprint / CHECKPOINT_NAME
                kept = KeptResult(fingerprint, path, size, facts, now + self._ttl_seconds)
        flush(self._folder)
        return kept

    def _make_room(self, size: int) -> None:
        """Remove the oldest results until there is room for one more of this size."""
        if size > self._max_bytes:
            message = f"The result has {size} bytes, and the service keeps {self._max_bytes}."
            raise ServiceError("too_large", message, max_result_bytes=self._max_bytes)
        self.remove_expired()
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

"""Fetches a source and writes a result to its destination, whatever kind of place each is."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from app.copying import Tell
from app.errors import ServiceError
from app.outbound.client import guarded_client
from app.outbound.networks import Networks
from app.responses import Extent
from app.scratch_room import free_bytes
from app.settings import Settings
from app.storage import buckets
from app.storage.allowed import AllowedLocations
from app.storage.attempts import attempts
from app.storage.blocks import Fetched, write_blocks
from app.storage.local_files import (
    exists_already,
    identity_of,
    open_file,
    real_location,
    write_file,
)
from app.storage.locations import BUCKETS, WEB, Location
from app.storage.part_copies import AnyExtent, NoPartCopies, PartCopies
from app.storage.part_fetching import WHOLE_BYTES, RemoteObject, RemoteRange
from app.storage.remote_blocks import blocks_of_any
from app.storage.web import blocks_of_web, open_web
from app.threads import Check, until_abandoned
from app.uploads import too_large

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Transfers:
    """What the operator allows to be fetched and written, and how much of it."""

    sources: AllowedLocations
    destinations: AllowedLocations
    networks: Networks
    max_bytes: int
    fetch_timeout_seconds: float

    @classmethod
    def from_settings(cls, settings: Settings) -> Transfers:
        return cls(
            AllowedLocations.of("source", settings.allowed_sources, own=settings.results_url),
            AllowedLocations.of(
                "destination", settings.allowed_destinations, own=settings.results_url
            ),
            Networks(settings.allowed_networks),
            settings.max_upload_bytes,
            settings.fetch_timeout_seconds,
        )

    def parse(self, source: str, destination: str | None) -> tuple[Location, Location | None]:
        """Return the locations of a job.

        Raises:
            ServiceError: one is no URL, or is not allowed, or nothing can be written there.
        """
        found = self.sources.parse(source)
        if destination is None:
            return found, None
        target = self.destinations.parse(destination)
        if target.scheme in WEB:
            message = "Nothing is written to addresses of the web: name a file or a bucket."
            raise ServiceError("invalid_location", message, role="destination")
        return found, target

    async def fetch(self, source: Location, target: Path, tell: Tell) -> Fetched:
        """Fetch a source of a bucket or of the web into a file; what may be gone later is tried again.

        Raises:
            ServiceError: it cannot be had, is too large, or takes too long.
        """
        self.sources.refuse(source)
        try:
            # A server that sends a byte now and then would keep others from being fetched for good.
            return await asyncio.wait_for(
                self._try_fetch(source, target, tell), self.fetch_timeout_seconds
            )
        except asyncio.TimeoutError as error:
            message = f"{source} was not here after the {self.fetch_timeout_seconds:g} seconds it may take."
            raise ServiceError("source_unavailable", message, retryable=True) from error

    async def look_at_object(self, source: Location) -> RemoteObject | None:
        """Return an object that may be fetched in part; None where all of it is to be fetched.

        Raises:
            ServiceError: there is none, it is too large, or it cannot be looked at.
        """
        self.sources.refuse(source)
        size, e_tag = await buckets.look_at_object(source)
        if size > self.max_bytes:
            raise too_large(self.max_bytes)
        return RemoteObject(source, e_tag, size) if e_tag and size > WHOLE_BYTES else None

    async def _try_fetch(self, source: Location, target: Path, tell: Tell) -> Fetched:
        async for attempt in attempts():
            with attempt:
                if source.scheme in BUCKETS:
                    return await self._fetch_object(source, target, tell)
                return await self._fetch_web(source, target, tell)
        raise AssertionError("unreachable: the last attempt raises")

    def look_at_file(self, source: Location) -> tuple[Location, tuple[int, int, int, int]]:
        """Return where a file really lies, and what tells it from another; it is not copied.

        Raises:
            ServiceError: it cannot be had, is not allowed, or is too large.
        """
        descriptor = open_file(source)
        try:
            found = real_location(descriptor)
            self.sources.refuse(found)
            identity = identity_of(descriptor)
        finally:
            os.close(descriptor)
        if identity[2] > self.max_bytes:
            raise too_large(self.max_bytes)
        return found, identity

    async def refuse_existing(
        self, destination: Location, fingerprint: str, *, may_replace: bool
    ) -> bool:
        """Return whether the result is there already.

        Raises:
            ServiceError: something else is there, and may not be replaced; or it cannot be looked at.
        """
        self.destinations.refuse(destination)
        if destination.scheme == "file":
            exists, found = os.path.lexists(destination.path), None
        else:
            exists, found = await buckets.object_fingerprint(destination)
        if found == fingerprint:
            return True
        if exists and not may_replace:
            raise exists_already(destination)
        return False

    async def deliver(
        self,
        extents: Sequence[AnyExtent],
        destination: Location,
        fingerprint: str,
        tell: Tell,
        *,
        writer: str,
        may_replace: bool,
    ) -> None:
        """Write a result to its destination, where it is when it is whole.

        Ranges of an object go to a bucket only. The store copies them by itself, if it can, and otherwise they are
        streamed from there to here and back.

        Raises:
            ServiceError: it cannot be written, or another file is there that may not be replaced.
        """
        self.destinations.refuse(destination)
        if destination.scheme == "file":
            here = [extent for extent in extents if isinstance(extent, Extent)]
            assert len(here) == len(extents)

            def write(check: Check) -> None:
                def check_and_tell(written: int) -> None:
                    check()
                    tell(written)

                write_file(
                    destination, here, check_and_tell, writer=writer, may_replace=may_replace
                )

            await until_abandoned(write)
            return
        if await self._assemble(extents, destination, fingerprint, tell):
            return
        size = sum(extent.count for extent in extents)
        async for attempt in attempts():
            with attempt:
                blocks = blocks_of_any(extents, tell)
                await buckets.put_object(destination, blocks, size, fingerprint)

    async def _assemble(
        self,
        extents: Sequence[AnyExtent],
        destination: Location,
        fingerprint: str,
        tell: Tell,
    ) -> bool:
        """Have the store copy what it has by itself; return whether it does that."""
        remote = [extent for extent in extents if isinstance(extent, RemoteRange)]
        schemes = {destination.scheme, *(extent.source.location.scheme for extent in remote)}
        if not remote or schemes != {"s3"}:
            return False
        # Loading boto3 takes half a second, which others need not wait.
        copies = await asyncio.to_thread(PartCopies.from_environment)
        if copies is None:
            return False
        write = partial(copies.write, destination, extents, fingerprint, tell)
        try:
            async for attempt in attempts():
                with attempt:
                    moved = await until_abandoned(write)
        except NoPartCopies as error:
            logger.info("%s is sent, as its store copies no parts: %s", destination, error)
            return False
        logger.info(
            "%s: %d bytes were copied by the store, %d fetched and %d sent",
            destination,
            moved.copied_bytes,
            moved.fetched_bytes,
            moved.sent_bytes,
        )
        return True

    async def _fetch_object(self, source: Location, target: Path, tell: Tell) -> Fetched:
        size, blocks = await buckets.open_object(source)
        self._refuse_size(size, target)
        fetched = await write_blocks(blocks, target, max_bytes=self.max_bytes, tell=tell)
        return _complete(fetched, size, source)

    async def _fetch_web(self, source: Location, target: Path, tell: Tell) -> Fetched:
        async with (
            guarded_client(self.networks) as client,
            open_web(client, source, self.sources.refuse) as response,
        ):
            declared = response.headers.get("content-length", "")
            size = int(declared) if declared.isdecimal() else None
            self._refuse_size(size or 0, target)
            blocks = blocks_of_web(response, source)
            fetched = await write_blocks(blocks, target, max_bytes=self.max_bytes, tell=tell)
            return _complete(fetched, size, source)

    def _refuse_size(self, size: int, target: Path) -> None:
        if size > self.max_bytes:
            raise too_large(self.max_bytes)
        if size > free_bytes(target.parent):
            message = f"The disk that jobs are kept on has no room for {size} bytes."
            raise ServiceError("no_space", message, retryable=True)


def _complete(fetched: Fetched, size: int | None, source: Location) -> Fetched:
    if size not in (None, fetched.size):
        message = f"{source} ended after {fetched.size} of {size} bytes."
        raise ServiceError("source_unavailable", message, retryable=True)
    if not fetched.size:
        raise ServiceError("empty_file", f"{source} is empty.")
    return fetched

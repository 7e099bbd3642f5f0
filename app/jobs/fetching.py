"""How the checkpoint of a job comes to this machine: an upload, a file where it lies, or from elsewhere, or in part."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from app.jobs.engine import Say
from app.jobs.folders import JobFolders
from app.jobs.job import JobRequest, Progress
from app.jobs.run_files import digest_file, made_by, made_in_part
from app.jobs.uploads import Uploads
from app.storage.locations import BUCKETS, Location
from app.storage.part_copies import AnyExtent
from app.storage.part_fetching import PartialFile, Ranges, RemoteObject
from app.storage.transfers import Transfers
from app.threads import until_abandoned

logger = logging.getLogger(__name__)

_PROGRESS = Progress("fetch", 1, 3)


class Fetching:
    """The first step of a job. What it says of a checkpoint is plain data, which the later steps are given."""

    def __init__(
        self,
        folders: JobFolders,
        uploads: Uploads,
        transfers: Transfers,
        scratch_root: Path,
        *,
        fetches_whole: bool,
    ) -> None:
        self._folders = folders
        self._uploads = uploads
        self._transfers = transfers
        self._scratch_root = scratch_root
        self._fetches_whole = fetches_whole

    async def step(
        self, request: JobRequest, before: Mapping[str, Any], say: Say
    ) -> dict[str, Any]:
        """Have the checkpoint on a disk of this machine; say how large it is, and what its SHA-256 is.

        Of one that is fetched in part nobody knows that; its entity tag stands in for it.
        """
        if request.source is None:
            total = replace(_PROGRESS, total_bytes=request.size)
            await self._uploads.bring(request, lambda done: say(replace(total, done_bytes=done)))
            return {"size": request.size, "digest": request.digest}
        source, _ = self._transfers.parse(request.source, request.destination)
        if source.scheme == "file":
            return await self._look_at_file(source, say)
        target = await asyncio.to_thread(self._folders.new_upload, request.id)

        def tell(received: int) -> None:
            say(replace(_PROGRESS, done_bytes=received))

        remote = await self._may_be_in_part(request, source)
        if remote is not None:
            part = PartialFile(remote, target)
            await asyncio.to_thread(part.create)
            tell(await part.fetch_first())
            return remote.to_fetched()
        fetched = await self._transfers.fetch(source, target, tell)
        return {"size": fetched.size, "digest": fetched.digest}

    async def at_hand(
        self, request: JobRequest, fetched: Mapping[str, Any], say: Say
    ) -> Mapping[str, Any]:
        """Have the checkpoint on this machine, where the first step was another one's, or too long ago."""
        if "file" in fetched:
            is_here = fetched["seen_by"] == str(self._scratch_root)
        else:
            is_here = await asyncio.to_thread(self._folders.upload(request.id).exists)
        return fetched if is_here else await self.step(request, {}, say)

    async def fetch_more(
        self, request: JobRequest, fetched: Mapping[str, Any], ranges: Ranges, say: Say
    ) -> None:
        """Fetch what a run needs beside what is there of a checkpoint that was fetched in part."""
        total = sum(count for _, count in ranges)
        progress = replace(_PROGRESS, total_bytes=total)
        part = PartialFile(self._remote(request, fetched), self._folders.upload(request.id))
        await part.fetch(ranges, lambda done: say(replace(progress, done_bytes=done)))
        logger.info("job %s needs %d bytes more of its source", request.id, total)

    def made(
        self, request: JobRequest, fetched: Mapping[str, Any], run: Path, stack: ExitStack
    ) -> tuple[dict[str, Any], Sequence[AnyExtent]]:
        """Return what there is to say of what a run has made, and its bytes; some may still be in the source."""
        if "e_tag" not in fetched:
            return made_by(run, fetched, stack)
        return made_in_part(run, self._remote(request, fetched), stack)

    async def _may_be_in_part(self, request: JobRequest, source: Location) -> RemoteObject | None:
        """Return an object of which no more need be fetched than the migrations read: what goes to a bucket again."""
        if source.scheme not in BUCKETS or self._fetches_whole or request.destination is None:
            return None
        if self._transfers.destinations.parse(request.destination).scheme not in BUCKETS:
            return None
        return await self._transfers.look_at_object(source)

    async def _look_at_file(self, source: Location, say: Say) -> dict[str, Any]:
        """Read a file where it lies, for its SHA-256."""
        found, identity = await asyncio.to_thread(self._transfers.look_at_file, source)

        def tell(read: int) -> None:
            say(replace(_PROGRESS, done_bytes=read, total_bytes=identity[2]))

        digest = await until_abandoned(partial(digest_file, found, identity, tell))
        return {
            "size": identity[2],
            "digest": digest,
            "file": found.path,
            "identity": list(identity),
            # What tells one file from another here says nothing elsewhere.
            "seen_by": str(self._scratch_root),
        }

    def _remote(self, request: JobRequest, fetched: Mapping[str, Any]) -> RemoteObject:
        assert request.source is not None
        return RemoteObject.of(fetched, self._transfers.sources.parse(request.source))

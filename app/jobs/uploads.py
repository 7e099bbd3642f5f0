"""Where the checkpoint of a job waits that came with the request, until the job is carried out."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from app.copying import Tell
from app.errors import ServiceError
from app.jobs.folders import JobFolders
from app.jobs.job import JobRequest
from app.responses import Extent
from app.storage.blocks import blocks_of, write_blocks
from app.storage.shared_bucket import SharedBucket

FOLDER = "uploads/"
# Between the writing of an upload and the storing of its job, no other process is to take it for left.
GRACE_SECONDS = 3600.0


class Uploads(Protocol):
    async def keep(self, request: JobRequest, upload: Path | None) -> None:
        """Keep what came with a job that is about to be stored, if anything did.

        Raises:
            ServiceError: it cannot be kept at the moment.
        """

    async def bring(self, request: JobRequest, tell: Tell) -> None:
        """Have it in the job's folder on this machine, where it is to be migrated.

        Raises:
            ServiceError: it cannot be had at the moment.
        """

    async def remove(self, job_id: str) -> None:
        """Remove all files of a job."""

    async def ids(self) -> set[str]:
        """Return the jobs that may have files."""


class LocalUploads:
    """On this machine, in the folder of the job: it is where it is wanted already."""

    def __init__(self, folders: JobFolders) -> None:
        self._folders = folders

    async def keep(self, request: JobRequest, upload: Path | None) -> None:
        if upload is not None:
            await asyncio.to_thread(self._folders.accept, upload, request.id)
        else:
            await asyncio.to_thread(self._folders.open, request.id)

    async def bring(self, request: JobRequest, tell: Tell) -> None:
        pass

    async def remove(self, job_id: str) -> None:
        await asyncio.to_thread(self._folders.remove, job_id)

    async def ids(self) -> set[str]:
        return set(await asyncio.to_thread(self._folders.ids))


class BucketUploads:
    """In a bucket, where whoever carries the job out can have it: uploads/JOB/SHA256."""

    def __init__(
        self,
        bucket: SharedBucket,
        folders: JobFolders,
        *,
        max_bytes: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._bucket = bucket
        self._folders = folders
        self._max_bytes = max_bytes
        self._clock = clock

    async def keep(self, request: JobRequest, upload: Path | None) -> None:
        if upload is None:
            return
        with ExitStack() as stack:
            descriptor = os.open(upload, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            size = os.fstat(descriptor).st_size
            extents = [Extent(descriptor, 0, size)]
            await self._bucket.write(
                _key(request), lambda: blocks_of(extents, lambda _: None), size
            )

    async def bring(self, request: JobRequest, tell: Tell) -> None:
        assert request.size is not None
        target = await asyncio.to_thread(self._folders.new_upload, request.id)
        blocks = self._bucket.read(_key(request), 0, request.size)
        try:
            fetched = await write_blocks(blocks, target, max_bytes=self._max_bytes, tell=tell)
        except FileNotFoundError as error:
            raise _lost("is not in the bucket any more") from error
        if fetched.digest != request.digest:
            await asyncio.to_thread(target.unlink)
            raise _lost("in the bucket is not the one that was sent")

    async def remove(self, job_id: str) -> None:
        await asyncio.to_thread(self._folders.remove, job_id)
        stored = await self._bucket.list(f"{FOLDER}{job_id}/")
        await self._bucket.remove([each.key for each in stored])

    async def ids(self) -> set[str]:
        old = self._clock() - GRACE_SECONDS
        stored = await self._bucket.list(FOLDER)
        waiting = {each.key.split("/")[1] for each in stored if each.written < old}
        return waiting | set(await asyncio.to_thread(self._folders.ids))


def _key(request: JobRequest) -> str:
    # The digest, for two processes may be sent different ones under one key of their client's.
    return f"{FOLDER}{request.id}/{request.digest}"


def _lost(what: str) -> ServiceError:
    return ServiceError("upload_lost", f"The upload of this job {what}: send it again.")

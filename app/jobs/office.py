"""The jobs of one service: accepted, waited for, cancelled, cleared away."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from app.errors import ServiceError
from app.jobs.delivery import Delivery
from app.jobs.engine import JobEngine
from app.jobs.folders import JobFolders
from app.jobs.job import Job, JobRequest
from app.jobs.results import KeptResult, Results

if TYPE_CHECKING:
    from app.jobs.callbacks import Callbacks
    from app.jobs.uploads import Uploads
    from app.storage.transfers import Transfers

logger = logging.getLogger(__name__)

# Somebody who waits for a job learns of its end so much later.
POLL_SECONDS = 0.2
SWEEP_SECONDS = 60.0

# A job is known for so long after it has ended, that its result has expired can be said.
REMEMBERED_SECONDS = 30 * 86400.0


class JobOffice:
    def __init__(
        self,
        engine: JobEngine,
        folders: JobFolders,
        uploads: Uploads,
        results: Results,
        transfers: Transfers,
        callbacks: Callbacks,
        *,
        max_queued: int,
        is_stopping: Callable[[], bool],
        retry_after: Callable[[], int],
    ) -> None:
        self.is_stopping = is_stopping
        # How many jobs waited when they were counted last.
        self.waiting = 0
        self._max_queued = max_queued
        self._retry_after = retry_after
        self.engine = engine
        self.folders = folders
        self.uploads = uploads
        self.results = results
        self.transfers = transfers
        self.callbacks = callbacks
        # One for each job that is being stored, or cleared away.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def accept(self, request: JobRequest, upload: Path | None = None) -> Job:
        """Store a job, and return it; or the one that has this id already and asks for the same.

        Raises:
            ServiceError: the id is that of a job that asks for something else, or too many jobs wait.
        """
        async with self._lock(request.id):
            job = await self.engine.status(request.id)
            if job is None:
                await self._refuse_full_queue()
                # First the file, then the job: no job is without its file.
                await self.uploads.keep(request, upload)
                job = await self.engine.submit(request)
        if not job.request.is_same_work(request):
            message = "This Idempotency-Key was used with another checkpoint or other parameters."
            raise ServiceError("key_reused", message, job=job.id)
        return job

    async def count_waiting(self) -> int:
        """Return how many jobs wait, and keep it for the metrics."""
        self.waiting = await self.engine.queued()
        return self.waiting

    async def refuse_when_full(self, job_id: str) -> None:
        """Refuse a job before it is received, where there would be no place for it; not one that is there already.

        Raises:
            ServiceError: too many jobs wait.
        """
        if await self.engine.status(job_id) is None:
            await self._refuse_full_queue()

    async def _refuse_full_queue(self) -> None:
        waiting = await self.count_waiting()
        if waiting >= self._max_queued:
            raise ServiceError(
                "queue_full",
                f"{waiting} jobs wait, and the service takes no more now.",
                retryable=True,
                retry_after=self._retry_after(),
            )

    async def find(self, job_id: str) -> Job:
        """Return a job as it stands.

        Raises:
            ServiceError: there is none of this id.
        """
        job = await self.engine.status(job_id)
        if job is None:
            message = f"There is no job {job_id}; one that ended long ago is forgotten."
            raise ServiceError("unknown_job", message)
        return job

    async def wait(self, job: Job, seconds: float | None) -> Job:
        """Return the job when it has ended, or as it stands after so many seconds.

        Nobody is kept waiting by a service that stops: the job goes on when it starts again.
        """
        deadline = math.inf if seconds is None else time.monotonic() + seconds
        while not job.has_ended and time.monotonic() < deadline and not self.is_stopping():
            await asyncio.sleep(POLL_SECONDS)
            job = await self.find(job.id)
        return job

    async def cancel(self, job_id: str) -> Job:
        """Cancel a job unless it has ended, and return it.

        Raises:
            ServiceError: there is none of this id.
        """
        await self.find(job_id)
        await self.engine.cancel(job_id)
        await self.uploads.remove(job_id)
        return await self.find(job_id)

    async def redeliver(self, job: Job) -> None:
        """Have the end of a job told once more, from the first attempt on.

        Raises:
            ServiceError: it names no callback, or has not ended.
        """
        if job.request.callback is None:
            raise ServiceError("no_callback", "This job names no callback.")
        if not job.has_ended:
            message = f"The job is {job.status}; its end is told when it has ended."
            raise ServiceError("job_not_ended", message, retryable=True)
        there_are = await self.engine.deliveries(job.id)
        number = 1 + max((state.delivery.number for state in there_are), default=-1)
        await self.engine.deliver(Delivery(job.id, job.request.callback, number))

    async def result(self, job: Job) -> KeptResult | None:
        """Return the result of a job that succeeded, if it is kept still."""
        if job.outcome is None:
            return None
        return await self.results.find(job.outcome["fingerprint"])

    async def sweep(self) -> None:
        """Remove what has expired, and the files of jobs that have ended."""
        await self.results.remove_expired()
        for job_id in await self.uploads.ids():
            async with self._lock(job_id):
                job = await self.engine.status(job_id)
                if job is None or job.has_ended:
                    await self.uploads.remove(job_id)
        await self.engine.tidy(before=time.time() - REMEMBERED_SECONDS)

    def _lock(self, job_id: str) -> asyncio.Lock:
        return self._locks.setdefault(job_id, asyncio.Lock())

    async def keep_sweeping(self) -> None:
        while True:
            try:
                await self.sweep()
            except Exception:
                # One that fails is no reason to sweep no more.
                logger.exception("What is left of jobs could not be cleared away")
            await asyncio.sleep(SWEEP_SECONDS)

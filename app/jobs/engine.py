"""The port to whatever keeps the jobs and has them carried out: a few calls, and plain data on both sides.

An engine keeps these promises, and `tests/app/jobs/test_engine.py` holds it to them:

* A job is stored when `submit` returns. The same id again is the same job.
* The steps of a job run in their order. What a step has returned is kept, and the step not run again;
  one that was interrupted by the end of its process is, when a worker runs again.
* What a worker had begun that was killed is taken up by the next one, or by another that is there; what one
  had begun that was told to stop, as well.
* A job whose worker was killed in the middle of it `MAX_TRIES` times is given up.
* Cancelling a job cancels the step that it is in, within a second.
* The delivery of a job that names a callback is put on its way when the job has ended, however it did, and
  each attempt of it is made once it is due; one that was interrupted is made again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from app.jobs.delivery import Attempt, Delivery, DeliveryState
from app.jobs.job import Job, JobRequest, Progress, Status

MAX_TRIES = 3

Say = Callable[[Progress], None]
Find = Callable[[str], Awaitable[Job | None]]
# Takes what the step before it returned. A "problem" in what it returns ends the job.
Step = Callable[[JobRequest, Mapping[str, Any], Say], Awaitable[dict[str, Any]]]


class Work(Protocol):
    """What a worker does for a job."""

    @property
    def steps(self) -> Mapping[str, Step]:
        """The steps by their names, in order."""

    async def end(self, request: JobRequest) -> None:
        """Clear away what is left of a job whose outcome is decided."""

    async def deliver(self, delivery: Delivery, find: Find) -> tuple[Delivery, Attempt] | None:
        """Make one attempt; return what was sent, and what became of it, or None where there is no such job."""


class JobEngine(Protocol):
    def run(self, work: Work | None) -> AbstractAsyncContextManager[None]:
        """Answer for jobs until the block is left, and carry them out unless there is nothing to do it with.

        What has not ended then goes on another time, or elsewhere.
        """

    async def submit(self, request: JobRequest) -> Job:
        """Store a job, and return it; or the one that has this id already."""

    async def status(self, job_id: str) -> Job | None:
        """Return a job as it stands, or None where there is none of this id."""

    async def cancel(self, job_id: str) -> None:
        """Cancel a job unless it has ended."""

    async def jobs(
        self, *, status: Status | None = None, limit: int = 50, offset: int = 0
    ) -> Sequence[Job]:
        """Return jobs, the newest first."""

    async def queued(self) -> int:
        """Return how many jobs wait."""

    async def deliver(self, delivery: Delivery) -> None:
        """Put a delivery on its way, unless it is already."""

    async def deliveries(self, job_id: str) -> Sequence[DeliveryState]:
        """Return the attempts of a job's deliveries, in their order."""

    async def tidy(self, *, before: float) -> None:
        """See to the deliveries that nobody came to see to, and forget the jobs that have ended before this time.

        Args:
            before: in seconds since 1970.
        """

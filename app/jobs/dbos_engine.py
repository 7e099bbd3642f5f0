"""The engine: DBOS Transact, on an SQLite file. A process has one of it.

DBOS keeps its rows, runs each job in a thread of its own, and queues anew at the start what a process
of the same name had not ended. The steps themselves are coroutines of the service's event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import asdict, replace
from datetime import datetime, timezone
from typing import Any, ParamSpec, TypeVar

from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer, WorkflowStatus

from app.errors import ServiceError
from app.jobs.dbos_deliveries import (
    APPLICATION_VERSION,
    DELIVERIES,
    DELIVERIES_AT_ONCE,
    DELIVERY,
    deliveries_of,
    enqueue_delivery,
)
from app.jobs.delivery import Attempt, Delivery, DeliveryState
from app.jobs.engine import MAX_TRIES, Say, Work
from app.jobs.job import Job, JobRequest, Progress, Status
from migrate_ckpt import MigrateCkptError

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

# One name and one version for good: at the start only the jobs of the same ones are taken up again.
EXECUTOR_ID = "migrate-ckpt"
QUEUE = "jobs"
WORKFLOW = "job"
PROGRESS = "progress"

# How soon a new job is seen.
QUEUE_POLL_SECONDS = 0.25
# How soon a step learns that its job was cancelled elsewhere, and others how far it is.
STEP_POLL_SECONDS = 0.4

_STATUSES: Mapping[str, Status] = {
    "ENQUEUED": "queued",
    "DELAYED": "queued",
    "PENDING": "running",
    "SUCCESS": "succeeded",
    "ERROR": "failed",
    "MAX_RECOVERY_ATTEMPTS_EXCEEDED": "failed",
    "CANCELLED": "cancelled",
}
# A job that failed for a known reason is, to DBOS, one whose function returned.
_QUERIES: Mapping[Status, list[str]] = {
    "queued": ["ENQUEUED", "DELAYED"],
    "running": ["PENDING"],
    "succeeded": ["SUCCESS"],
    "failed": ["SUCCESS", "ERROR", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"],
    "cancelled": ["CANCELLED"],
}


class _LeaveAsItIs(BaseException):
    """Ends the thread of a job without an outcome; DBOS takes down what an Exception says."""


class DbosEngine:
    def __init__(self, database_url: str, *, concurrency: int, max_tries: int = MAX_TRIES) -> None:
        self._database_url = database_url
        self._concurrency = concurrency
        self._max_tries = max_tries
        self._running: dict[str, asyncio.Task[Any]] = {}
        self._is_stopping = False

    @contextlib.asynccontextmanager
    async def run_worker(self, work: Work) -> AsyncIterator[None]:
        self._work = work
        self._loop = asyncio.get_running_loop()
        self._is_stopping = False
        await asyncio.to_thread(self._launch)
        try:
            yield
        finally:
            self._is_stopping = True
            await self._end_steps(list(self._running.values()))
            await asyncio.to_thread(DBOS.destroy, destroy_registry=True)

    async def submit(self, request: JobRequest) -> Job:
        await asyncio.to_thread(
            DBOS.enqueue_workflow_with_options,
            {
                "workflow_name": WORKFLOW,
                "queue_name": QUEUE,
                "workflow_id": request.id,
                "app_version": APPLICATION_VERSION,
            },
            request.to_dict(),
        )
        job = await self.status(request.id)
        assert job is not None
        return job

    async def status(self, job_id: str) -> Job | None:
        return await asyncio.to_thread(self._status, job_id)

    async def cancel(self, job_id: str) -> None:
        job = await self.status(job_id)
        if job is None or job.has_ended:
            return
        await asyncio.to_thread(DBOS.cancel_workflow, job_id)
        if job_id in self._running:
            await self._end_steps([self._running[job_id]])
        if job.request.callback is not None:
            await self.deliver(Delivery(job_id, job.request.callback))

    async def jobs(
        self, *, status: Status | None = None, limit: int = 50, offset: int = 0
    ) -> Sequence[Job]:
        return await asyncio.to_thread(self._jobs, status, limit, offset)

    async def queued(self) -> int:
        return len(await asyncio.to_thread(_positions))

    async def deliver(self, delivery: Delivery) -> None:
        await asyncio.to_thread(enqueue_delivery, delivery)

    async def deliveries(self, job_id: str) -> Sequence[DeliveryState]:
        return await asyncio.to_thread(deliveries_of, job_id)

    async def forget(self, *, before: float) -> None:
        await asyncio.to_thread(self._forget, before)

    def _launch(self) -> None:
        config: DBOSConfig = {
            "name": "migrate-ckpt",
            "system_database_url": self._database_url,
            "application_version": APPLICATION_VERSION,
            "executor_id": EXECUTOR_ID,
            # Who can write to the database could have a pickle do anything.
            "serializer": DBOSPortableJSONSerializer(),
            "log_level": "ERROR",
        }
        DBOS(config=config)

        @DBOS.workflow(name=WORKFLOW, max_recovery_attempts=self._max_tries - 1)
        def job(request: dict[str, Any]) -> dict[str, Any]:
            return self._run(JobRequest.from_dict(request))

        @DBOS.workflow(name=DELIVERY)
        def delivery(given: dict[str, Any]) -> dict[str, Any]:
            return self._deliver(Delivery.from_dict(given))

        DBOS.launch()
        DBOS.register_queue(
            QUEUE,
            worker_concurrency=self._concurrency,
            polling_interval_sec=QUEUE_POLL_SECONDS,
            on_conflict="always_update",
        )
        DBOS.register_queue(
            DELIVERIES,
            worker_concurrency=DELIVERIES_AT_ONCE,
            polling_interval_sec=QUEUE_POLL_SECONDS,
            on_conflict="always_update",
        )

    def _run(self, request: JobRequest) -> dict[str, Any]:
        """Carry out one job, in the thread that DBOS has given it."""
        outcome: dict[str, Any] = {}
        for name in self._work.steps:
            outcome = DBOS.run_step({"name": name}, self._run_step, request, name, outcome)
            if "problem" in outcome:
                break
        # Before the job's folder goes, by which a sweep would find that nobody has been told.
        if request.callback is not None:
            enqueue_delivery(Delivery(request.id, request.callback))
        self._in_loop(request.id, lambda: self._work.end(request)).result()
        return outcome

    def _deliver(self, delivery: Delivery) -> dict[str, Any]:
        """Make one attempt, in the thread that DBOS has given it, and see to the next one."""
        made = DBOS.run_step({"name": "attempt"}, self._attempt, delivery)
        attempt = Attempt(**made["attempt"]) if made else None
        if attempt is not None and attempt.delay_seconds is not None:
            due = attempt.at + attempt.seconds + attempt.delay_seconds
            enqueue_delivery(Delivery.from_dict(made["delivery"]).next(due=due))
        return made

    def _attempt(self, delivery: Delivery) -> dict[str, Any]:
        attempting = self._in_loop(
            delivery.id, lambda: self._work.deliver(delivery, self.status)
        ).result()
        if attempting is None:
            return {}
        sent, attempt = attempting
        return {"delivery": sent.to_dict(), "attempt": asdict(attempt)}

    def _run_step(
        self, request: JobRequest, name: str, before: Mapping[str, Any]
    ) -> dict[str, Any]:
        names = list(self._work.steps)
        # Of what is said between two looks, only the last is told.
        said = deque([Progress(name, names.index(name) + 1, len(names))], maxlen=1)
        running = self._in_loop(
            request.id, lambda: self._try_step(request, name, before, said.append)
        )
        while True:
            if said:
                DBOS.set_event(PROGRESS, said.popleft().to_dict())
            try:
                outcome: dict[str, Any] = running.result(STEP_POLL_SECONDS)
                return outcome
            except FutureTimeoutError:
                if _is_cancelled(request.id):
                    self._loop.call_soon_threadsafe(self._cancel_step, request.id)

    def _in_loop(self, job_id: str, work: Callable[[], Any]) -> Future[Any]:
        """Begin this in the event loop, under the name of the job.

        Waiting for it raises _LeaveAsItIs where it was cancelled: the service stops, or the row says
        already that the job is cancelled.
        """

        async def follow() -> Any:
            if self._is_stopping:
                raise _LeaveAsItIs
            task = self._running[job_id] = asyncio.ensure_future(work())
            try:
                return await task
            except asyncio.CancelledError:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                raise _LeaveAsItIs from None
            finally:
                del self._running[job_id]

        return asyncio.run_coroutine_threadsafe(follow(), self._loop)

    async def _try_step(
        self, request: JobRequest, name: str, before: Mapping[str, Any], say: Say
    ) -> dict[str, Any]:
        try:
            return await self._work.steps[name](request, before, say)
        except (ServiceError, MigrateCkptError) as error:
            return {"problem": error.to_dict()}
        except Exception:
            logger.exception("job %s failed unforeseen in %s", request.id, name)
            message = "The service failed; its log has the reason under the id of this job."
            return {"problem": ServiceError("internal", message, retryable=True).to_dict()}

    def _cancel_step(self, job_id: str) -> None:
        if job_id in self._running:
            self._running[job_id].cancel()

    async def _end_steps(self, tasks: Sequence[asyncio.Task[Any]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _status(self, job_id: str) -> Job | None:
        row = DBOS.get_workflow_status(job_id)
        if row is None or row.name != WORKFLOW:
            return None
        job = self._to_job(row)
        if job.status == "running":
            progress = DBOS.get_event(job_id, PROGRESS, timeout_seconds=0)
            return replace(job, progress=progress and Progress(**progress))
        if job.status == "queued":
            return replace(job, queue_position=_positions().get(job_id))
        return job

    def _jobs(self, status: Status | None, limit: int, offset: int) -> list[Job]:
        rows = DBOS.list_workflows(
            name=WORKFLOW,
            status=_QUERIES[status] if status else None,
            limit=limit,
            offset=offset,
            sort_desc=True,
        )
        positions = _positions()
        jobs = [
            replace(self._to_job(row), queue_position=positions.get(row.workflow_id))
            for row in rows
        ]
        return [job for job in jobs if status in (None, job.status)]

    def _to_job(self, row: WorkflowStatus) -> Job:
        assert row.input is not None
        assert row.created_at is not None
        status = _STATUSES[row.status]
        outcome: Mapping[str, Any] | None = row.output
        problem = outcome and outcome.get("problem")
        if status == "failed":
            problem = self._problem(row)
        elif problem:
            status = "failed"
        return Job(
            request=JobRequest.from_dict(row.input["args"][0]),
            status=status,
            created=row.created_at / 1000,
            started=row.dequeued_at and row.dequeued_at / 1000,
            ended=row.completed_at and row.completed_at / 1000,
            outcome=None if problem else outcome,
            problem=problem,
        )

    def _problem(self, row: WorkflowStatus) -> dict[str, Any]:
        """Say why a job has no outcome: it was given up, or it is DBOS that failed."""
        if row.status == "ERROR":
            logger.error("job %s failed in the engine: %s", row.workflow_id, row.error)
            message = "The service failed; its log has the reason under the id of this job."
            return ServiceError("internal", message, retryable=True).to_dict()
        message = (
            f"The job was given up: {self._max_tries} times it was begun, and each time the service "
            "ended before the job did."
        )
        return ServiceError("given_up", message, tries=self._max_tries).to_dict()

    def _forget(self, before: float) -> None:
        when = datetime.fromtimestamp(before, timezone.utc).isoformat()
        rows = DBOS.list_workflows(
            name=WORKFLOW, completed_before=when, load_input=False, load_output=False
        )
        jobs = [row.workflow_id for row in rows]
        attempts = DBOS.list_workflows(
            name=DELIVERY, completed_before=when, load_input=False, load_output=False
        )
        DBOS.delete_workflows([*jobs, *(row.workflow_id for row in attempts)])


def _positions() -> dict[str, int]:
    """Return for each job that waits which one in the queue it is; the first is 1."""
    rows = DBOS.list_workflows(
        name=WORKFLOW, status=_QUERIES["queued"], load_input=False, load_output=False
    )
    # SQLite's times are whole seconds; within one, DBOS goes by the id.
    in_order = sorted((row.created_at or 0, row.workflow_id) for row in rows)
    return {job_id: number for number, (_, job_id) in enumerate(in_order, start=1)}


def _is_cancelled(job_id: str) -> bool:
    row = DBOS.get_workflow_status(job_id)
    return row is None or row.status == "CANCELLED"

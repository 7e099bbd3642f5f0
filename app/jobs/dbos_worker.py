"""The part of the engine that carries jobs out. A process has one of it.

DBOS runs each job in a thread of its own, and waits for the database where that is away for a while. The
steps themselves are coroutines of the service's event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import asdict
from typing import Any

from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer

from app.errors import ServiceError
from app.jobs.dbos_rows import (
    APPLICATION,
    APPLICATION_VERSION,
    DELIVERIES,
    DELIVERY,
    JOB,
    JOBS,
    PROGRESS,
    order_delivery,
)
from app.jobs.delivery import Attempt, Delivery
from app.jobs.engine import Find, Say, Work
from app.jobs.job import JobRequest, Progress
from migrate_ckpt import MigrateCkptError

logger = logging.getLogger(__name__)

# How soon a new job is seen.
QUEUE_POLL_SECONDS = 0.25
# How soon a step learns that its job is not this worker's any more, and others how far it is.
STEP_POLL_SECONDS = 0.4
# Receivers that do not answer hold up no more than so many at once.
DELIVERIES_AT_ONCE = 8


class _LeaveAsItIs(BaseException):
    """Ends the thread of a job without an outcome; DBOS takes down what an Exception says."""


class DbosWorker:
    def __init__(
        self,
        database_url: str,
        work: Work,
        find: Find,
        *,
        executor_id: str,
        concurrency: int,
        max_tries: int,
    ) -> None:
        self._database_url = database_url
        self._work = work
        self._find = find
        self._executor_id = executor_id
        self._concurrency = concurrency
        self._max_tries = max_tries
        self._running: dict[str, asyncio.Task[Any]] = {}
        self._is_stopping = False

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Carry out jobs until the block is left; what has not ended then stays this worker's in the database."""
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._launch)
        try:
            yield
        finally:
            self._is_stopping = True
            await _end(list(self._running.values()))
            await asyncio.to_thread(DBOS.destroy, destroy_registry=True)

    async def end_step(self, job_id: str) -> None:
        """End the step that a job is in, if it is in one here."""
        if job_id in self._running:
            await _end([self._running[job_id]])

    def _launch(self) -> None:
        config: DBOSConfig = {
            "name": APPLICATION,
            "system_database_url": self._database_url,
            "application_version": APPLICATION_VERSION,
            "executor_id": self._executor_id,
            # Who can write to the database could have a pickle do anything.
            "serializer": DBOSPortableJSONSerializer(),
            "log_level": "ERROR",
        }
        DBOS(config=config)

        @DBOS.workflow(name=JOB, max_recovery_attempts=self._max_tries - 1)
        def job(request: dict[str, Any]) -> dict[str, Any]:
            return self._run(JobRequest.from_dict(request))

        @DBOS.workflow(name=DELIVERY)
        def delivery(given: dict[str, Any]) -> dict[str, Any]:
            return self._deliver(Delivery.from_dict(given))

        DBOS.launch()
        for queue, concurrency in ((JOBS, self._concurrency), (DELIVERIES, DELIVERIES_AT_ONCE)):
            DBOS.register_queue(
                queue,
                worker_concurrency=concurrency,
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
        if request.callback is not None:
            _enqueue(Delivery(request.id, request.callback))
        self._in_loop(request.id, lambda: self._work.end(request)).result()
        return outcome

    def _deliver(self, delivery: Delivery) -> dict[str, Any]:
        """Make one attempt, in the thread that DBOS has given it, and see to the next one."""
        made = DBOS.run_step({"name": "attempt"}, self._attempt, delivery)
        attempt = Attempt(**made["attempt"]) if made else None
        if attempt is not None and attempt.delay_seconds is not None:
            due = attempt.at + attempt.seconds + attempt.delay_seconds
            _enqueue(Delivery.from_dict(made["delivery"]).next(due=due))
        return made

    def _attempt(self, delivery: Delivery) -> dict[str, Any]:
        attempting = self._in_loop(
            delivery.id, lambda: self._work.deliver(delivery, self._find)
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
                if not self._is_ours(request.id):
                    self._loop.call_soon_threadsafe(self._cancel_step, request.id)

    def _is_ours(self, job_id: str) -> bool:
        """Return whether a job that runs here is to: it may be cancelled, or another's who took us for dead."""
        row = DBOS.get_workflow_status(job_id)
        return row is not None and (row.status, row.executor_id) == ("PENDING", self._executor_id)

    def _in_loop(self, job_id: str, work: Callable[[], Any]) -> Future[Any]:
        """Begin this in the event loop, under the name of the job.

        Waiting for it raises _LeaveAsItIs where it was cancelled: the service stops, or the row says
        already what becomes of the job.
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
                if self._running.get(job_id) is task:
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


def _enqueue(delivery: Delivery) -> None:
    options, given = order_delivery(delivery)
    DBOS.enqueue_workflow_with_options(options, given)  # type: ignore[arg-type]


async def _end(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

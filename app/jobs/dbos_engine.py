"""The engine: DBOS Transact, on an SQLite file for one process or on PostgreSQL for many.

What is asked of it is asked by a client that waits for no database: where that is away, the question fails.
Jobs are carried out by a worker (`dbos_worker.py`), whose death another one notices (`dbos_guard.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from typing import Any, TypeVar

from dbos import DBOS, DBOSClient, DBOSPortableJSONSerializer, WorkflowStatus
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from app.errors import ServiceError
from app.jobs.dbos_guard import Guard
from app.jobs.dbos_rows import (
    APPLICATION,
    DELIVERY,
    ENDED_FROM_OUTSIDE,
    JOB,
    PROGRESS,
    QUERIES,
    order_delivery,
    order_job,
    positions_of,
    to_delivery,
    to_job,
)
from app.jobs.dbos_worker import DbosWorker
from app.jobs.delivery import Delivery, DeliveryState
from app.jobs.engine import MAX_TRIES, Work
from app.jobs.job import Job, JobRequest, Progress, Status

logger = logging.getLogger(__name__)

T = TypeVar("T")

# What a process had not ended is taken up by the next of the same name. Of those on one database there are
# many, and none has the name of another.
SOLE_EXECUTOR_ID = APPLICATION

QUESTIONS_AT_ONCE = 8
QUESTION_SECONDS = 15.0
PAUSE_SECONDS = 1.0


class DbosEngine:
    def __init__(self, database_url: str, *, concurrency: int, max_tries: int = MAX_TRIES) -> None:
        self._database_url = database_url
        self._concurrency = concurrency
        self._max_tries = max_tries
        self._is_shared = not database_url.startswith("sqlite:")
        self._worker: DbosWorker | None = None

    @contextlib.asynccontextmanager
    async def run(self, work: Work | None) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            self._pool = stack.enter_context(_pool())
            # The client makes no tables.
            await asyncio.to_thread(DBOS.migrate, self._database_url)
            self._client = await asyncio.to_thread(_connect, self._database_url)
            stack.callback(self._client.destroy)
            if work is not None:
                await stack.enter_async_context(self._working(work))
            yield

    @contextlib.asynccontextmanager
    async def _working(self, work: Work) -> AsyncIterator[None]:
        executor_id = _new_executor_id() if self._is_shared else SOLE_EXECUTOR_ID
        worker = DbosWorker(
            self._database_url,
            work,
            self._status_once_it_can_be_had,
            executor_id=executor_id,
            concurrency=self._concurrency,
            max_tries=self._max_tries,
        )
        async with AsyncExitStack() as stack:
            guard = stack.enter_context(self._guard(executor_id)) if self._is_shared else None
            stack.push_async_callback(asyncio.to_thread, self._hand_back, executor_id)
            await stack.enter_async_context(worker.running())
            if guard is not None:
                stack.enter_context(guard.watching())
            self._worker = worker
            try:
                yield
            finally:
                self._worker = None

    def _guard(self, executor_id: str) -> Guard:
        def owners() -> set[str]:
            rows = self._client.list_workflows(
                status="PENDING", load_input=False, load_output=False
            )
            return {row.executor_id for row in rows if row.executor_id is not None}

        def take_over(owner: str) -> None:
            # Not the public resume_workflows, which begins the count of tries anew.
            DBOS._recover_pending_workflows([owner])

        return Guard(self._database_url, executor_id, owners=owners, take_over=take_over)

    async def submit(self, request: JobRequest) -> Job:
        await self._ask(self._enqueue, *order_job(request))
        job = await self.status(request.id)
        assert job is not None
        return job

    async def status(self, job_id: str) -> Job | None:
        return await self._ask(self._status, job_id)

    async def _status_once_it_can_be_had(self, job_id: str) -> Job | None:
        """Return a job to a worker, which has the time: what it is about to deliver is not given up for an outage."""
        while True:
            try:
                return await self.status(job_id)
            except ServiceError:
                await asyncio.sleep(PAUSE_SECONDS)

    async def cancel(self, job_id: str) -> None:
        job = await self.status(job_id)
        if job is None or job.has_ended:
            return
        await self._ask(self._client.cancel_workflow, job_id)
        if self._worker is not None:
            await self._worker.end_step(job_id)
        if job.request.callback is not None:
            await self.deliver(Delivery(job_id, job.request.callback))

    async def jobs(
        self, *, status: Status | None = None, limit: int = 50, offset: int = 0
    ) -> Sequence[Job]:
        return await self._ask(self._jobs, status, limit, offset)

    async def queued(self) -> int:
        return len(await self._ask(self._positions))

    async def deliver(self, delivery: Delivery) -> None:
        await self._ask(self._enqueue, *order_delivery(delivery))

    async def deliveries(self, job_id: str) -> Sequence[DeliveryState]:
        return await self._ask(self._deliveries, job_id)

    async def tidy(self, *, before: float) -> None:
        await self._ask(self._deliver_ends)
        await self._ask(self._forget, before)

    async def _ask(self, question: Callable[..., T], *given: Any) -> T:
        """Have a thread ask the database.

        Raises:
            ServiceError: it does not answer.
        """
        asking = asyncio.get_running_loop().run_in_executor(self._pool, partial(question, *given))
        try:
            return await asyncio.wait_for(asyncio.shield(asking), QUESTION_SECONDS)
        except (DBAPIError, PoolTimeoutError, asyncio.TimeoutError) as error:
            logger.warning("The database of the jobs does not answer: %s", _first_line(error))
            message = "The database that jobs are kept in does not answer at the moment."
            raise ServiceError(
                "jobs_unavailable", message, retryable=True, retry_after=5
            ) from error

    def _enqueue(self, options: dict[str, Any], given: dict[str, Any]) -> None:
        self._client.enqueue(options, given)  # type: ignore[arg-type]

    def _status(self, job_id: str) -> Job | None:
        rows = self._client.list_workflows(name=JOB, workflow_ids=[job_id])
        if not rows:
            return None
        job = self._to_job(rows[0])
        if job.status == "running":
            progress = self._client.get_event(job_id, PROGRESS, timeout_seconds=0)
            return replace(job, progress=progress and Progress(**progress))
        if job.status == "queued":
            return replace(job, queue_position=self._positions().get(job_id))
        return job

    def _jobs(self, status: Status | None, limit: int, offset: int) -> list[Job]:
        rows = self._client.list_workflows(
            name=JOB,
            status=QUERIES[status] if status else None,
            limit=limit,
            offset=offset,
            sort_desc=True,
        )
        positions = self._positions()
        jobs = [
            replace(self._to_job(row), queue_position=positions.get(row.workflow_id))
            for row in rows
        ]
        return [job for job in jobs if status in (None, job.status)]

    def _positions(self) -> dict[str, int]:
        return positions_of(
            self._client.list_workflows(
                name=JOB, status=QUERIES["queued"], load_input=False, load_output=False
            )
        )

    def _to_job(self, row: WorkflowStatus) -> Job:
        return to_job(row, max_tries=self._max_tries)

    def _deliveries(self, job_id: str) -> list[DeliveryState]:
        rows = self._client.list_workflows(name=DELIVERY, workflow_id_prefix=f"{job_id}.")
        states = [to_delivery(row) for row in rows]
        return sorted(states, key=lambda state: (state.delivery.number, state.delivery.attempt))

    def _deliver_ends(self) -> None:
        """Put on its way what nobody came to: of jobs that were given up, or cancelled by who died then."""
        rows = self._client.list_workflows(name=JOB, status=ENDED_FROM_OUTSIDE, load_output=False)
        requests = [JobRequest.from_dict(row.input["args"][0]) for row in rows if row.input]
        firsts = [Delivery(each.id, each.callback) for each in requests if each.callback]
        if not firsts:
            # To DBOS, a list of none is no restriction.
            return
        there_are = self._client.list_workflows(
            workflow_ids=[first.id for first in firsts], load_input=False, load_output=False
        )
        known = {row.workflow_id for row in there_are}
        for first in firsts:
            if first.id not in known:
                self._enqueue(*order_delivery(first))

    def _forget(self, before: float) -> None:
        when = datetime.fromtimestamp(before, timezone.utc).isoformat()
        rows = self._client.list_workflows(
            name=[JOB, DELIVERY], completed_before=when, load_input=False, load_output=False
        )
        self._client.delete_workflows([row.workflow_id for row in rows])

    def _hand_back(self, executor_id: str) -> None:
        """Have others go on with what this process had not ended: to be told to stop is no failed try."""
        try:
            rows = self._client.list_workflows(
                status="PENDING", executor_id=executor_id, load_input=False, load_output=False
            )
            for queue in {row.queue_name for row in rows}:
                ids = [row.workflow_id for row in rows if row.queue_name == queue]
                self._client.resume_workflows(ids, queue_name=queue)
        except DBAPIError as error:
            # They are found to have been left, then.
            logger.warning("What has not ended was not handed back: %s", _first_line(error))


def _connect(database_url: str) -> DBOSClient:
    return DBOSClient(
        system_database_url=database_url,
        serializer=DBOSPortableJSONSerializer(),
        application_name=APPLICATION,
        system_database_pool_size=QUESTIONS_AT_ONCE,
        retry_connection_errors=False,
    )


@contextlib.contextmanager
def _pool() -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(QUESTIONS_AT_ONCE, "jobs-database")
    try:
        yield pool
    finally:
        # A question that is not answered holds up no stop.
        pool.shutdown(wait=False, cancel_futures=True)


def _new_executor_id() -> str:
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__

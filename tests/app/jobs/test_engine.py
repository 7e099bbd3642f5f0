"""The contract of the port, which whatever keeps the jobs has to fulfil."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.errors import ServiceError
from app.jobs.delivery import Attempt, Delivery
from app.jobs.engine import MAX_TRIES, Find, JobEngine, Say, Step
from app.jobs.job import Job, JobRequest, Progress
from app.parameters import RunParameters
from tests.postgres import Postgres, running_postgres

pytest.importorskip("dbos", reason="the extra [jobs] is not installed")


def ask(job_id: str, *, digest: str = "d") -> JobRequest:
    return JobRequest(job_id, "old.pt", 1, digest, RunParameters(to="0001_a"))


class Recorder:
    """Two steps; what they do is up to the test, and it is noted which of them began and which ended."""

    def __init__(self, *, first: Step | None = None, second: Step | None = None) -> None:
        self.begun: list[str] = []
        self.cancelled: list[str] = []
        self.cleared: list[str] = []
        self.delivered: list[str] = []
        # How many attempts of a delivery fail.
        self.failures = 0
        self._do = {"first": first or returns(at=1), "second": second or returns(at=2)}
        self.steps: Mapping[str, Step] = {
            "first": lambda *given: self._note("first", *given),
            "second": lambda *given: self._note("second", *given),
        }

    async def _note(
        self, name: str, request: JobRequest, before: Mapping[str, Any], say: Say
    ) -> dict[str, Any]:
        self.begun.append(f"{request.id} {name}")
        try:
            return await self._do[name](request, before, say)
        except asyncio.CancelledError:
            self.cancelled.append(f"{request.id} {name}")
            raise

    async def end(self, request: JobRequest) -> None:
        self.cleared.append(request.id)

    async def deliver(self, delivery: Delivery, find: Find) -> tuple[Delivery, Attempt] | None:
        while (job := await find(delivery.job_id)) is not None and not job.has_ended:
            await asyncio.sleep(0.05)
        if job is None:
            return None
        self.delivered.append(f"{delivery.id} {job.status}")
        is_last = delivery.attempt >= self.failures
        attempt = Attempt(
            time.time(),
            0.0,
            200 if is_last else 500,
            None if is_last else "no",
            None if is_last else 0.1,
        )
        return replace(delivery, event=job.status, body="{}"), attempt


def returns(**outcome: Any) -> Step:
    async def step(request: JobRequest, before: Mapping[str, Any], say: Say) -> dict[str, Any]:
        return {**before, **outcome}

    return step


def raises(error: Exception) -> Step:
    async def step(request: JobRequest, before: Mapping[str, Any], say: Say) -> dict[str, Any]:
        raise error

    return step


async def hangs(request: JobRequest, before: Mapping[str, Any], say: Say) -> dict[str, Any]:
    say(Progress("second", 2, 2, "0001_a", 7, 9))
    await asyncio.Event().wait()
    raise AssertionError


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.acceptance)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without a row, of each kind that jobs can be kept in."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'jobs.sqlite'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database(uuid.uuid4().hex)


@pytest.fixture
def run(database_url: str) -> Callable[..., Any]:
    """Run a coroutine that takes what starts an engine on the same database each time."""

    from app.jobs.dbos_engine import DbosEngine

    @asynccontextmanager
    async def working(work: Recorder | None) -> AsyncIterator[JobEngine]:
        engine = DbosEngine(database_url, concurrency=1)
        async with engine.run(work):
            yield engine

    def run(test: Callable[..., Awaitable[None]]) -> None:
        asyncio.run(asyncio.wait_for(test(working), 120))

    return run


async def until(
    engine: JobEngine, job_id: str, condition: Callable[[Job], bool] = lambda job: job.has_ended
) -> Job:
    while True:
        job = await engine.status(job_id)
        assert job is not None
        if condition(job):
            return job
        await asyncio.sleep(0.05)


def test_steps_run_in_order_and_the_last_one_makes_the_outcome(run: Any) -> None:
    async def test(working: Any) -> None:
        work = Recorder()
        async with working(work) as engine:
            submitted = await engine.submit(ask("a"))
            job = await until(engine, "a")

        assert submitted.status in ("queued", "running")
        assert (job.status, job.outcome, job.problem) == ("succeeded", {"at": 2}, None)
        assert job.request == ask("a")
        assert work.begun == ["a first", "a second"]
        assert work.cleared == ["a"]

    run(test)


def test_jobs_that_wait_are_counted(run: Any) -> None:
    async def test(working: Any) -> None:
        async with working(Recorder(second=hangs)) as engine:
            for job_id in "abc":
                await engine.submit(ask(job_id))
            await until(engine, "a", lambda job: job.status == "running")

            assert await engine.queued() == 2

            await engine.cancel("b")
            assert await engine.queued() == 1

    run(test)


def test_same_id_is_the_same_job(run: Any) -> None:
    async def test(working: Any) -> None:
        work = Recorder()
        async with working(work) as engine:
            await engine.submit(ask("a"))
            again = await engine.submit(ask("a", digest="another"))
            await until(engine, "a")

        assert again.request == ask("a")
        assert work.begun == ["a first", "a second"]

    run(test)


def test_failing_step_is_not_tried_again(run: Any) -> None:
    async def test(working: Any) -> None:
        work = Recorder(first=raises(ServiceError("migration_failed", "It failed.", position=1)))
        async with working(work) as engine:
            await engine.submit(ask("a"))
            job = await until(engine, "a")
            listed = await engine.jobs(status="failed")
            succeeded = await engine.jobs(status="succeeded")

        assert (job.status, job.outcome) == ("failed", None)
        assert job.problem is not None
        assert job.problem["error_type"] == "migration_failed"
        assert job.problem["position"] == 1
        assert work.begun == ["a first"]
        assert work.cleared == ["a"]
        assert [job.id for job in listed] == ["a"]
        assert succeeded == []

    run(test)


def test_unforeseen_error_is_told_to_the_log_only(
    run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(working: Any) -> None:
        async with working(Recorder(second=raises(KeyError("a secret")))) as engine:
            await engine.submit(ask("a"))
            job = await until(engine, "a")

        assert job.status == "failed"
        assert job.problem is not None
        assert job.problem["error_type"] == "internal"
        assert "secret" not in str(job.problem)

    run(test)

    assert "a secret" in caplog.text


def test_what_waits_has_a_position(run: Any) -> None:
    async def test(working: Any) -> None:
        async with working(Recorder(second=hangs)) as engine:
            await engine.submit(ask("a"))
            await until(engine, "a", lambda job: job.status == "running")
            await engine.submit(ask("b"))
            await engine.submit(ask("c"))
            waiting = [await engine.status(job_id) for job_id in "bc"]
            listed = await engine.jobs(status="queued")
            await engine.cancel("b")
            after = await engine.status("c")

        assert [(job.status, job.queue_position) for job in waiting] == [
            ("queued", 1),
            ("queued", 2),
        ]
        assert {job.id: job.queue_position for job in listed} == {"b": 1, "c": 2}
        assert after.queue_position == 1

    run(test)


def test_progress_is_seen_from_outside(run: Any) -> None:
    async def test(working: Any) -> None:
        async with working(Recorder(second=hangs)) as engine:
            await engine.submit(ask("a"))
            job = await until(
                engine, "a", lambda job: bool(job.progress and job.progress.migration)
            )

        assert job.progress == Progress("second", 2, 2, "0001_a", 7, 9)

    run(test)


def test_cancelled_job_ends_at_once_and_gives_its_place_to_the_next(run: Any) -> None:
    async def test(working: Any) -> None:
        work = Recorder(first=hangs)
        async with working(work) as engine:
            await engine.submit(ask("a"))
            await until(engine, "a", lambda job: job.status == "running")
            await engine.submit(ask("b"))
            begun = time.monotonic()
            await engine.cancel("a")
            seconds = time.monotonic() - begun
            job = await engine.status("a")
            await until(engine, "b", lambda job: job.status == "running")

        print(f"the job was cancelled within {seconds:.2f} s")
        assert seconds < 10
        assert job.status == "cancelled"
        assert work.cancelled[0] == "a first"
        assert "a second" not in work.begun

    run(test)


def test_ended_job_stays_as_it_is_when_it_is_cancelled(run: Any) -> None:
    async def test(working: Any) -> None:
        async with working(Recorder()) as engine:
            await engine.submit(ask("a"))
            await until(engine, "a")
            await engine.cancel("a")
            job = await engine.status("a")

        assert job.status == "succeeded"

    run(test)


def test_job_goes_on_at_the_step_in_which_its_worker_ended(run: Any) -> None:
    async def test(working: Any) -> None:
        interrupted, later = Recorder(second=hangs), Recorder()
        async with working(interrupted) as engine:
            await engine.submit(ask("a"))
            await until(engine, "a", lambda job: bool(job.progress and job.progress.migration))
        async with working(later) as engine:
            job = await until(engine, "a")

        assert interrupted.begun == ["a first", "a second"]
        assert interrupted.cancelled == ["a second"]
        assert later.begun == ["a second"]
        assert (job.status, job.outcome) == ("succeeded", {"at": 2})

    run(test)


@contextmanager
def killed_worker(database_url: str) -> Iterator[Callable[[], str]]:
    """A worker in a process of its own that hangs in the second step; killed at the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.app.jobs.hanging_worker", database_url],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield lambda: process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.acceptance
def test_job_of_a_worker_that_was_killed_goes_on_elsewhere(run: Any, database_url: str) -> None:
    async def test(working: Any) -> None:
        async with working(None) as engine:
            await engine.submit(ask("a"))
        with killed_worker(database_url) as begun:
            assert [begun(), begun()] == ["a first", "a second"]
        later = Recorder()
        async with working(later) as engine:
            job = await until(engine, "a")

        assert later.begun == ["a second"]
        assert (job.status, job.outcome) == ("succeeded", {"at": 2})

    run(test)


@pytest.mark.acceptance
def test_job_whose_worker_is_killed_each_time_is_given_up(run: Any, database_url: str) -> None:
    async def test(working: Any) -> None:
        async with working(None) as engine:
            await engine.submit(with_callback("a"))
        begun = []
        for _ in range(MAX_TRIES):
            with killed_worker(database_url) as next_step:
                while "second" not in (step := next_step()):
                    begun.append(step)
        work = Recorder()
        async with working(work) as engine:
            job = await until(engine, "a")
            await engine.tidy(before=0)
            await engine.tidy(before=0)
            await until_delivered(engine, "a")

        assert begun == ["a first"]
        assert job.status == "failed"
        assert job.problem is not None
        assert job.problem["error_type"] == "given_up"
        assert job.problem["tries"] == MAX_TRIES
        assert work.begun == []
        assert work.delivered == ["a.0.0 failed"]

    run(test)


def test_being_told_to_stop_is_no_failed_try(run: Any) -> None:
    async def test(working: Any) -> None:
        work = Recorder(second=hangs)
        for number in range(MAX_TRIES + 1):
            async with working(work) as engine:
                if number == 0:
                    await engine.submit(ask("a"))
                while len(work.begun) < number + 2:
                    await asyncio.sleep(0.05)
        async with working(Recorder()) as engine:
            job = await until(engine, "a")

        assert (job.status, job.outcome) == ("succeeded", {"at": 2})
        assert work.begun == ["a first"] + ["a second"] * (MAX_TRIES + 1)

    run(test)


def test_without_a_worker_jobs_are_kept_and_answered_for(run: Any) -> None:
    async def test(working: Any) -> None:
        async with working(None) as engine:
            await engine.submit(ask("a"))
            await engine.submit(ask("b"))
            await asyncio.sleep(1)
            waiting = await engine.queued()
            await engine.cancel("a")
            cancelled = await engine.status("a")
        async with working(Recorder()) as engine:
            job = await until(engine, "b")

        assert (waiting, cancelled.status, job.status) == (2, "cancelled", "succeeded")

    run(test)


def test_job_that_ended_before_a_time_is_forgotten_then(run: Any) -> None:
    async def test(working: Any) -> None:
        async with working(Recorder()) as engine:
            await engine.submit(ask("a"))
            await until(engine, "a")
            await engine.tidy(before=time.time() - 60)
            kept = await engine.status("a")
            await engine.tidy(before=time.time() + 60)
            forgotten = await engine.status("a")

        assert kept is not None
        assert forgotten is None

    run(test)


def test_unknown_job_has_no_status(run: Any) -> None:
    async def test(working: Any) -> None:
        async with working(Recorder()) as engine:
            assert await engine.status("nothing") is None
            await engine.cancel("nothing")

    run(test)


def with_callback(job_id: str) -> JobRequest:
    return replace(ask(job_id), callback="https://example.org/hook")


async def until_delivered(engine: JobEngine, job_id: str) -> list[int | None]:
    """Wait for the end of a delivery; return what each attempt was answered with."""
    while True:
        states = await engine.deliveries(job_id)
        attempts = [state.attempt for state in states]
        if attempts and attempts[-1] is not None and attempts[-1].delay_seconds is None:
            return [attempt and attempt.status for attempt in attempts]
        await asyncio.sleep(0.05)


def test_end_of_a_job_is_delivered_and_tried_again(run: Any) -> None:
    async def test(working: Any) -> None:
        work = Recorder()
        work.failures = 2
        async with working(work) as engine:
            await engine.submit(with_callback("a"))
            await engine.submit(ask("b"))
            statuses = await until_delivered(engine, "a")
            await until(engine, "b")
            others = await engine.deliveries("b")

        assert statuses == [500, 500, 200]
        assert work.delivered == [f"a.0.{n} succeeded" for n in range(3)]
        assert others == []

    run(test)


def test_end_of_a_job_that_failed_or_was_cancelled_is_delivered(run: Any) -> None:
    async def test(working: Any) -> None:
        work = Recorder(first=raises(ServiceError("no_space", "It is full.")))
        async with working(work) as engine:
            await engine.submit(with_callback("a"))
            await until_delivered(engine, "a")
        work = Recorder(first=hangs)
        async with working(work) as engine:
            await engine.submit(with_callback("b"))
            while not work.begun:
                await asyncio.sleep(0.05)
            await engine.cancel("b")
            await until_delivered(engine, "b")

        assert work.delivered == ["b.0.0 cancelled"]

    run(test)


def test_delivery_that_waits_is_made_by_the_next_worker(run: Any) -> None:
    async def test(working: Any) -> None:
        work = Recorder()
        work.failures = 1
        async with working(work) as engine:
            await engine.submit(with_callback("a"))
            while not work.delivered:
                await asyncio.sleep(0.02)
        again = Recorder()
        again.failures = 1
        async with working(again) as engine:
            await until_delivered(engine, "a")

        assert [*work.delivered, *again.delivered][-1] == "a.0.1 succeeded"

    run(test)


def test_delivery_waits_for_a_database_that_is_away(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from app.jobs.dbos_engine import DbosEngine

    away = [ServiceError("jobs_unavailable", "It is away.", retryable=True)]
    status = DbosEngine.status

    async def status_later(engine: Any, job_id: str) -> Job | None:
        # Of what is asked, the worker's own question is the first.
        if away and len(work.begun) == 2:
            raise away.pop()
        return await status(engine, job_id)

    work = Recorder()

    async def test(working: Any) -> None:
        async with working(work) as engine:
            await engine.submit(with_callback("a"))
            monkeypatch.setattr(DbosEngine, "status", status_later)
            await until_delivered(engine, "a")

        assert not away
        assert work.delivered == ["a.0.0 succeeded"]

    run(test)


def test_same_delivery_is_made_once(run: Any) -> None:
    async def test(working: Any) -> None:
        work = Recorder()
        async with working(work) as engine:
            await engine.submit(with_callback("a"))
            await until_delivered(engine, "a")
            await engine.deliver(Delivery("a", "https://example.org/hook"))
            await engine.deliver(Delivery("a", "https://example.org/hook", 1))
            while len(work.delivered) < 2:
                await asyncio.sleep(0.05)

        assert work.delivered == ["a.0.0 succeeded", "a.1.0 succeeded"]

    run(test)

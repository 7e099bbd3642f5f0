"""What a worker does where the place that uploads and results are kept in is away for a moment."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("dbos", reason="the extra [jobs] is not installed")
from tenacity import wait_none

from app.errors import ServiceError
from app.jobs.job import JobRequest
from app.jobs.work import MigrationWork
from app.parameters import RunParameters

REQUEST = JobRequest("a", None, 1, "d", RunParameters())


class Away:
    """Does not answer so many times."""

    def __init__(self, times: int) -> None:
        self.left = times
        self.asked = 0

    async def remove(self, job_id: str) -> None:
        self._answer()

    async def renew(self, fingerprint: str) -> str:
        self._answer()
        return fingerprint

    def _answer(self) -> None:
        self.asked += 1
        if self.left:
            self.left -= 1
            raise ServiceError("results_unavailable", "It is away.", retryable=True)


def work_with(away: Away) -> MigrationWork:
    nothing: Any = None
    place: Any = away
    fetching: Any = SimpleNamespace(step=None)
    return MigrationWork(
        settings=nothing,
        sets=nothing,
        sandbox=nothing,
        admission=nothing,
        folders=nothing,
        uploads=place,
        fetching=fetching,
        results=place,
        transfers=nothing,
        callbacks=nothing,
        telemetry=nothing,
        scratch_root=nothing,
    )


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries without their pauses."""
    monkeypatch.setattr("app.storage.attempts.wait_exponential_jitter", lambda **_: wait_none())


def test_job_does_not_fail_because_its_files_cannot_be_removed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    asyncio.run(work_with(Away(1)).end(REQUEST))

    assert "The files of job a are still there: It is away." in caplog.text


def test_result_is_looked_for_again_where_that_may_help() -> None:
    away = Away(3)

    found: Any = asyncio.run(work_with(away).find_kept("f"))

    assert (found, away.asked) == ("f", 4)


def test_result_is_not_looked_for_for_ever() -> None:
    away = Away(100)

    with pytest.raises(ServiceError, match="It is away"):
        asyncio.run(work_with(away).find_kept("f"))

    assert away.asked == 5

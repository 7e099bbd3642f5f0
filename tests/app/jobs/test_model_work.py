"""What is written down of a version in the registry, and in which order, with a registry of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("dbos", reason="the extra [jobs] is not installed")
from app.errors import ServiceError
from app.jobs.job import JobRequest
from app.jobs.model_tags import JOB, MIGRATED_FROM, MIGRATED_TO, REASON, STATUS
from app.jobs.model_work import ModelWork
from app.parameters import RunParameters
from app.registry.versions import ModelVersion, request_for
from app.settings import Settings

OLD = ModelVersion("net/a b", "1")


class Registry:
    """Has one model; what a job has registered is there already."""

    def __init__(self, request: JobRequest, *, is_there: bool = True) -> None:
        self.new = ModelVersion(OLD.name, "2", tags={JOB: request.id, MIGRATED_FROM: "1"})
        self.is_there = is_there
        self.tagged: list[tuple[str, Mapping[str, str]]] = []
        self.moved: list[tuple[str, str]] = []

    async def version(self, name: str, version: str) -> ModelVersion:
        if not self.is_there:
            raise ServiceError("registry_not_found", "It is not there.")
        return OLD

    async def versions(self, name: str) -> AsyncIterator[ModelVersion]:
        yield OLD
        yield self.new

    async def aliases(self, version: ModelVersion) -> list[str]:
        return ["candidate-1", "champion"]

    async def move_alias(self, alias: str, to: ModelVersion) -> None:
        self.moved.append((alias, to.version))

    async def tag(self, version: ModelVersion, tags: Mapping[str, str]) -> None:
        self.tagged.append((version.version, tags))


class Inner:
    """The work of other jobs, which is not asked for anything here."""

    def __init__(self) -> None:
        self.steps = dict.fromkeys(("fetch", "migrate", "store"), self._step)

    async def _step(self, request: JobRequest, before: Any, say: Any) -> dict[str, Any]:
        return {"theirs": request.id}


@pytest.fixture
def request_of_a_model() -> JobRequest:
    found = request_for(OLD, url="http://registry", models=[("text-*", "text"), ("net/*", "net")])
    assert found is not None
    return found


def work_with(registry: Registry, tmp_path: Path) -> ModelWork:
    nothing: Any = None
    inner: Any = Inner()
    client: Any = registry
    settings = Settings(
        migrations_folder=tmp_path, scratch_folder=tmp_path, mlflow_aliases="candidate-*"
    )
    return ModelWork(inner, client, settings=settings, transfers=nothing)


def run(work: ModelWork, name: str, request: JobRequest, before: dict[str, Any]) -> Any:
    return asyncio.run(work.steps[name](request, before, lambda _: None))  # type: ignore[arg-type]


def made(*, size: int | None) -> dict[str, Any]:
    report = {"ran": ["0001_a"], "set": "net", "set_digest": "1:d", "fingerprint": "f"}
    return {"fingerprint": "f", "digest": "d", "result_digest": "r", "result_size": size} | {
        "report": report,
        "header": "{}",
    }


def test_job_of_a_version_is_the_same_each_time_and_has_the_set_of_its_model(
    request_of_a_model: JobRequest,
) -> None:
    again = request_for(OLD, url="http://registry", models=[("*", "net")])
    other = request_for(OLD, url="http://elsewhere", models=[("*", "net")])

    assert again is not None
    assert other is not None
    assert request_of_a_model == again
    assert request_of_a_model.id != other.id
    assert request_of_a_model.source == "models:/net%2Fa%20b/1"
    assert request_of_a_model.parameters.set == "net"
    assert request_for(OLD, url="", models=[("text-*", "text")]) is None


def test_status_is_the_last_thing_that_is_said(
    request_of_a_model: JobRequest, tmp_path: Path
) -> None:
    registry = Registry(request_of_a_model)
    before = {"made": {"a.ckpt": made(size=3)}, "is_ours": False}

    outcome = run(work_with(registry, tmp_path), "store", request_of_a_model, before)

    # Registered before it was interrupted, it is not registered again.
    assert outcome["model"]["new_version"] == "2"
    assert registry.moved == [("candidate-1", "2")]
    assert registry.tagged == [("1", {MIGRATED_TO: "2", STATUS: "migrated"})]
    assert list(registry.tagged[0][1])[-1] == STATUS


def test_why_it_failed_is_said_before_that_it_failed(
    request_of_a_model: JobRequest, tmp_path: Path
) -> None:
    registry = Registry(request_of_a_model, is_there=False)

    with pytest.raises(ServiceError):
        run(work_with(registry, tmp_path), "fetch", request_of_a_model, {})

    assert registry.tagged == [("1", {REASON: "It is not there.", STATUS: "failed"})]
    assert list(registry.tagged[0][1])[-1] == STATUS


def test_nothing_is_registered_where_nothing_ran(
    request_of_a_model: JobRequest, tmp_path: Path
) -> None:
    registry = Registry(request_of_a_model)
    before = {"made": {"a.ckpt": made(size=None)}, "is_ours": False}

    outcome = run(work_with(registry, tmp_path), "store", request_of_a_model, before)

    assert outcome["model"]["new_version"] is None
    assert (registry.tagged, registry.moved) == ([("1", {STATUS: "current"})], [])


def test_version_of_ours_is_left_alone(request_of_a_model: JobRequest, tmp_path: Path) -> None:
    registry = Registry(request_of_a_model)

    run(work_with(registry, tmp_path), "store", request_of_a_model, {"made": {}, "is_ours": True})

    assert (registry.tagged, registry.moved) == ([], [])


def test_other_jobs_are_done_as_before(request_of_a_model: JobRequest, tmp_path: Path) -> None:
    registry = Registry(request_of_a_model)
    other = JobRequest("b", "a.ckpt", 1, "d", RunParameters())

    for name in ("fetch", "migrate", "store"):
        assert run(work_with(registry, tmp_path), name, other, {}) == {"theirs": "b"}

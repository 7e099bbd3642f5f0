from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
from fastapi import FastAPI

import migrate_ckpt
from app import errors
from app.errors import STATUSES, RunFailed, ServiceError
from app.request_ids import RequestIdMiddleware
from tests.app.conftest import Client

MEMBERS = {
    *("type", "title", "status", "detail", "instance", "error_type", "retryable", "request_id"),
}


@pytest.fixture(scope="module")
def client(start: Callable[[FastAPI], Client]) -> Client:
    """An application that does nothing but fail, in every way there is."""
    app = FastAPI()
    app.add_middleware(RequestIdMiddleware)
    errors.install(app)

    @app.get("/own")
    async def own() -> None:
        raise ServiceError("no_space", "The disk is full.", retryable=True, free_bytes=7)

    @app.get("/library")
    async def library() -> None:
        raise migrate_ckpt.UnwritableCheckpoint("A lambda cannot be written.", where="hook")

    @app.get("/unforeseen")
    async def unforeseen() -> None:
        raise RuntimeError("a secret path")

    @app.get("/validated")
    async def validated(number: int) -> None: ...

    @app.get("/surrogate")
    async def surrogate() -> None:
        raise ServiceError("not_a_checkpoint", "A key is \ud800.")

    return start(app)


def library_errors() -> list[type[migrate_ckpt.MigrateCkptError]]:
    found = [getattr(migrate_ckpt, name) for name in migrate_ckpt.__all__]
    return [
        value
        for value in found
        if inspect.isclass(value) and issubclass(value, migrate_ckpt.MigrateCkptError)
    ]


@pytest.mark.parametrize("error", library_errors(), ids=lambda error: error.__name__)
def test_every_error_of_the_library_has_a_status(
    error: type[migrate_ckpt.MigrateCkptError],
) -> None:
    # Only the command writes into files of the user's, and knows of targets.
    in_table = error.error_type in STATUSES
    only_in_command = error in (
        migrate_ckpt.MigrateCkptError,
        migrate_ckpt.TargetExists,
        migrate_ckpt.UndoRefused,
    )

    assert in_table != only_in_command


@pytest.mark.parametrize(
    ("method", "path", "status", "error_type"),
    [
        ("GET", "/own", 507, "no_space"),
        ("GET", "/library", 422, "unwritable"),
        ("GET", "/unforeseen", 500, "internal"),
        ("GET", "/validated", 400, "invalid_parameter"),
        ("GET", "/surrogate", 422, "not_a_checkpoint"),
        ("GET", "/nowhere", 404, "not_found"),
        ("POST", "/own", 405, "method_not_allowed"),
    ],
)
def test_every_error_is_a_problem(
    client: Client, method: str, path: str, status: int, error_type: str
) -> None:
    answer = client.request(method, path)

    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert set(problem) >= MEMBERS
    assert (problem["status"], problem["error_type"]) == (status, error_type)
    assert problem["instance"] == path
    assert problem["request_id"] == answer.headers["x-request-id"]


def test_data_of_an_error_stands_in_its_problem(client: Client) -> None:
    assert client.get("/own").json()["free_bytes"] == 7
    assert client.get("/library").json()["where"] == "hook"


def test_unforeseen_error_tells_the_client_nothing_of_its_reason(client: Client) -> None:
    assert "secret" not in client.get("/unforeseen").text


def test_refused_method_is_told_which_are_allowed(client: Client) -> None:
    assert client.post("/own").headers["allow"] == "GET"


def test_error_of_a_run_survives_its_way_through_the_sandbox() -> None:
    error = ServiceError("migration_failed", "No.", migration="0001_x", position=1, count=2)

    again = RunFailed.from_dict(error.to_dict())

    assert again.to_dict() == error.to_dict()

"""Hooks with the whole service behind them but for the socket and the registry."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI

from app.errors import ServiceError
from app.hooks import standard
from app.hooks.mlflow import sample
from app.hooks.signatures import MLFLOW, STANDARD, Scheme
from app.main import create_app
from app.settings import Settings, SettingsError
from tests.app.conftest import Client

pytest.importorskip("dbos", reason="the extra [jobs] is not installed")

SECRETS = {MLFLOW: "of-mlflow", STANDARD: "whsec_" + "B" * 32}
PATHS = {MLFLOW: "/hooks/mlflow", STANDARD: "/hooks/standard"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, files: Path) -> dict[str, Any]:
    migrations = tmp_path_factory.mktemp("migrations")
    (migrations / "0001_rename.py").write_text(
        'def handle(ckpt):\n    ckpt["b"] = ckpt.pop("a")\n    return ckpt\n'
    )
    return {
        "migrations_folder": migrations,
        "scratch_folder": tmp_path_factory.mktemp("scratch"),
        "allowed_sources": f"file://{files}",
        "allowed_destinations": f"file://{files}",
    }


@pytest.fixture(scope="module")
def client(
    start: Callable[[FastAPI], Client],
    settings: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Client:
    return start(
        create_app(
            Settings(
                **settings,
                data_folder=tmp_path_factory.mktemp("data"),
                hook_secret=SECRETS[STANDARD],
                # Nobody listens there: what is asked of it is asked by jobs, later.
                mlflow_url="http://127.0.0.1:1",
                mlflow_secret=f"an-older-one {SECRETS[MLFLOW]}",
                mlflow_models="vision-*=default text-*=unknown",
            )
        )
    )


def send(
    client: Client,
    scheme: Scheme,
    said: Any,
    *,
    delivery_id: str = "1",
    seconds: float = 0.0,
    secret: str | None = None,
) -> httpx.Response:
    body = said if isinstance(said, bytes) else json.dumps(said).encode()
    now = str(int(time.time() + seconds))
    signature = scheme.sign(secret or SECRETS[scheme], body=body, delivery_id=delivery_id, time=now)
    assert scheme.id_header is not None
    assert scheme.time_header is not None
    headers = {
        scheme.id_header: delivery_id,
        scheme.time_header: now,
        scheme.signature_header: signature,
    }
    return client.post(PATHS[scheme], content=body, headers=headers)


def created(name: str, version: object = "1", **data: Any) -> dict[str, Any]:
    return {
        "entity": "model_version",
        "action": "created",
        "data": {"name": name, "version": version, **data},
    }


@pytest.mark.parametrize("scheme", SECRETS, ids=["mlflow", "standard"])
def test_who_does_not_know_the_secret_gets_nowhere(client: Client, scheme: Scheme) -> None:
    other = "whsec_" + "C" * 32

    for answer in (
        send(client, scheme, {}, secret=other),
        client.post(PATHS[scheme], content=b"{}"),
        client.post(PATHS[scheme], content=b"not even JSON"),
    ):
        assert (answer.status_code, answer.json()["error_type"]) == (401, "bad_signature")


@pytest.mark.parametrize("scheme", SECRETS, ids=["mlflow", "standard"])
def test_delivery_of_another_time_is_refused(client: Client, scheme: Scheme) -> None:
    for seconds in (-400, 400):
        answer = send(client, scheme, {}, seconds=seconds)
        assert (answer.status_code, answer.json()["error_type"]) == (400, "stale_delivery")


@pytest.mark.parametrize("scheme", SECRETS, ids=["mlflow", "standard"])
@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b'"text"'])
def test_what_is_signed_and_no_object_is_refused(
    client: Client, scheme: Scheme, body: bytes
) -> None:
    answer = send(client, scheme, body)

    assert (answer.status_code, answer.json()["error_type"]) == (400, "malformed_delivery")


def test_delivery_of_any_size_is_not_read(client: Client) -> None:
    answer = send(client, MLFLOW, b" " * 2**19)

    assert (answer.status_code, answer.json()["error_type"]) == (413, "too_large")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (sample(), "It is MLflow's test"),
        ({"entity": "prompt", "action": "created"}, "prompt.created asks for nothing"),
        ({}, "None.None asks for nothing"),
        (created("vision-a", tags={"migrated_from": "3"}), "was made by a migration"),
        (created("audio-a"), "No set of migrations is meant for the model audio-a"),
    ],
)
def test_what_asks_for_nothing_is_taken_and_ignored(
    client: Client, said: dict[str, Any], reason: str
) -> None:
    answer = send(client, MLFLOW, said)

    assert answer.status_code == 200
    assert reason in answer.json()["ignored"]
    assert answer.json()["job"] is None


def test_sample_of_ours_is_taken_and_ignored(client: Client) -> None:
    answer = send(client, STANDARD, standard.sample())

    assert (answer.status_code, answer.json()["job"]) == (200, None)
    assert "It is a test" in answer.json()["ignored"]


@pytest.mark.parametrize("data", [None, [], {}, {"name": "a"}, {"name": "", "version": "1"}])
def test_version_without_a_name_is_refused(client: Client, data: Any) -> None:
    answer = send(client, MLFLOW, created("x") | {"data": data})

    assert (answer.status_code, answer.json()["error_type"]) == (400, "malformed_delivery")


def test_version_is_one_job_however_often_it_is_told(client: Client) -> None:
    first = send(client, MLFLOW, created("vision-b"), delivery_id="a")
    again = send(client, MLFLOW, created("vision-b", 1), delivery_id="b")
    other = send(client, MLFLOW, created("vision-b", "2"), delivery_id="a")

    assert (first.status_code, again.status_code, other.status_code) == (202, 200, 202)
    assert first.json()["job"] == again.json()["job"] == first.headers["location"]
    assert other.json()["job"] != first.json()["job"]
    document = client.get(first.json()["job"]).json()
    assert document["source"] == "models:/vision-b/1"
    client.request("DELETE", first.json()["job"])
    client.request("DELETE", other.json()["job"])


def test_set_that_is_not_there_is_said(client: Client) -> None:
    answer = send(client, MLFLOW, created("text-a"))

    assert (answer.status_code, answer.json()["error_type"]) == (404, "unknown_set")


def test_full_queue_asks_for_another_try_before_the_signature_is_stale(client: Client) -> None:
    office = client.app.state.jobs

    async def refuse(request: Any) -> Any:
        raise ServiceError("queue_full", "Full.", retryable=True, retry_after=3600)

    accept, office.accept = office.accept, refuse
    try:
        answer = send(client, MLFLOW, created("vision-c"))
    finally:
        office.accept = accept

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "60")


def test_delivery_names_source_and_destination(client: Client, files: Path) -> None:
    torch.save({"a": torch.ones(3)}, files / "old.ckpt")
    data = {
        "source": f"file://{files}/old.ckpt",
        "destination": f"file://{files}/new.ckpt",
        "registered_by": "somebody",
    }
    said = {"type": "model.registered", "timestamp": "2026-11-25T00:00:00Z", "data": data}

    first = send(client, STANDARD, said, delivery_id="msg_1")
    again = send(client, STANDARD, said, delivery_id="msg_1")
    document = client.get(first.json()["job"], headers={"Prefer": "wait=30"}).json()

    assert (first.status_code, again.status_code) == (202, 200)
    assert first.json()["job"] == again.json()["job"]
    assert document["status"] == "succeeded", document
    assert "b" in torch.load(files / "new.ckpt", weights_only=True)


@pytest.mark.parametrize(
    ("said", "status", "error_type"),
    [
        ({"source": "s3://elsewhere/a.ckpt"}, 403, "source_not_allowed"),
        ({"source": "models:/vision-a/1"}, 400, "invalid_location"),
        ({"data": {}}, 400, "invalid_order"),
        ({"source": 3}, 400, "invalid_order"),
    ],
)
def test_delivery_asks_for_no_more_than_a_client_may(
    client: Client, said: dict[str, Any], status: int, error_type: str
) -> None:
    answer = send(client, STANDARD, said, delivery_id="msg_2")

    assert (answer.status_code, answer.json()["error_type"]) == (status, error_type)


def test_version_of_a_model_is_no_source_that_a_client_can_name(client: Client) -> None:
    answer = client.post("/jobs", json={"source": "models:/vision-a/1"})

    assert (answer.status_code, answer.json()["error_type"]) == (400, "invalid_location")


@pytest.mark.parametrize("path", PATHS.values())
def test_hook_without_a_secret_does_not_exist(
    start: Callable[[FastAPI], Client],
    settings: dict[str, Any],
    tmp_path: Path,
    path: str,
) -> None:
    # A URL alone makes no hook.
    given = settings | {"data_folder": tmp_path / path[-3:], "mlflow_url": "http://127.0.0.1:1"}
    app = create_app(Settings(**given))
    app.state.jobs = None

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            return await client.post(path, content=b"{}")

    import asyncio

    answer = asyncio.run(ask())
    assert (answer.status_code, answer.json()["error_type"]) == (404, "not_found")


def test_secret_without_a_server_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    given = settings | {"data_folder": tmp_path, "mlflow_secret": "s"}

    with pytest.raises(SettingsError, match="MLFLOW_SECRET needs MIGRATE_CKPT_MLFLOW_URL"):
        create_app(Settings(**given))


def test_hooks_need_jobs(settings: dict[str, Any]) -> None:
    for given in ({"hook_secret": SECRETS[STANDARD]}, {"mlflow_url": "http://127.0.0.1:1"}):
        with pytest.raises(SettingsError, match="needs jobs, which deliveries become"):
            create_app(Settings(**settings, **given))

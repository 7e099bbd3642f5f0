"""MLflow's REST API as its client here speaks it, with a server in this process in place of the network."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

httpx = pytest.importorskip("httpx", reason="the extra [jobs] is not installed")
pytest.importorskip("obstore", reason="the extra [jobs] is not installed")

from tenacity import wait_none  # noqa: E402 - it needs what was looked for

from app.errors import ServiceError  # noqa: E402
from app.registry.artifacts import Artifact, ProxiedArtifacts, open_artifacts  # noqa: E402
from app.registry.mlflow import MlflowClient  # noqa: E402
from app.registry.versions import ModelVersion  # noqa: E402

URL = "http://mlflow.example.org:5000/"
API = "/api/2.0/mlflow"


class Server:
    """Answers as it is told, and remembers what it was asked."""

    def __init__(self, answer: Callable[[httpx.Request], httpx.Response]) -> None:
        self.answer = answer
        self.asked: list[httpx.Request] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        self.asked.append(request)
        return self.answer(request)

    def run(self, work: Callable[[MlflowClient], Any]) -> Any:
        async def with_client() -> Any:
            client = MlflowClient(URL, transport=httpx.MockTransport(self))
            try:
                return await work(client)
            finally:
                await client.close()

        return asyncio.run(with_client())


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries without their pauses."""
    monkeypatch.setattr("app.storage.attempts.wait_exponential_jitter", lambda **_: wait_none())


def version(number: int, **tags: str) -> dict[str, Any]:
    listed = [{"key": key, "value": value} for key, value in tags.items()]
    return {"name": "a", "version": str(number), "status": "READY", "run_id": "", "tags": listed}


def test_version_is_read_with_its_tags() -> None:
    server = Server(lambda _: httpx.Response(200, json={"model_version": version(3, x="y")}))

    found = server.run(lambda client: client.version("a b", "3"))

    assert found == ModelVersion("a", "3", None, "READY", {"x": "y"})
    assert server.asked[0].url.path == f"{API}/model-versions/get"
    assert dict(server.asked[0].url.params) == {"name": "a b", "version": "3"}


def test_versions_come_page_by_page() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.params.get("page_token") == "more":
            return httpx.Response(200, json={"model_versions": [version(3)]})
        page = {"model_versions": [version(1), version(2)], "next_page_token": "more"}
        return httpx.Response(200, json=page)

    async def collect(client: MlflowClient) -> list[str]:
        return [each.version async for each in client.versions("a")]

    server = Server(answer)

    assert server.run(collect) == ["1", "2", "3"]
    assert server.asked[1].url.params["filter"] == "name='a'"


def test_model_without_versions_has_none() -> None:
    async def collect(client: MlflowClient) -> list[ModelVersion]:
        return [each async for each in client.versions()]

    assert Server(lambda _: httpx.Response(200, json={})).run(collect) == []


@pytest.mark.parametrize(
    ("status", "error_type", "count"),
    [
        (404, "registry_not_found", 1),
        (400, "registry_refused", 1),
        (401, "registry_refused", 1),
        (403, "registry_refused", 1),
        (302, "registry_refused", 1),
        (429, "registry_unavailable", 5),
        (500, "registry_unavailable", 5),
        (503, "registry_unavailable", 5),
    ],
)
def test_what_may_help_is_tried_again_and_nothing_else(
    status: int, error_type: str, count: int
) -> None:
    server = Server(lambda _: httpx.Response(status, json={"message": "it says why"}))

    with pytest.raises(ServiceError) as caught:
        server.run(lambda client: client.version("a", "1"))

    assert caught.value.error_type == error_type
    assert len(server.asked) == count


def test_server_that_is_not_there_is_said_so_with_its_address() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("no")

    server = Server(refuse)

    with pytest.raises(ServiceError, match=r"MLflow at http://mlflow\.example\.org:5000 cannot"):
        server.run(lambda client: client.version("a", "1"))

    assert len(server.asked) == 5


def test_what_is_no_json_is_an_error_of_the_server() -> None:
    server = Server(lambda _: httpx.Response(200, text="<html>"))

    with pytest.raises(ServiceError) as caught:
        server.run(lambda client: client.version("a", "1"))

    assert caught.value.error_type == "registry_unavailable"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"MLFLOW_TRACKING_TOKEN": "t0ken"}, "Bearer t0ken"),
        (
            {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "pw"},
            "Basic bWU6cHc=",
        ),
    ],
)
def test_credentials_are_those_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str | None
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    server = Server(lambda _: httpx.Response(200, json={"model_version": version(1)}))

    server.run(lambda client: client.version("a", "1"))

    assert server.asked[0].headers.get("authorization") == expected


def test_run_of_a_migration_is_made_once() -> None:
    runs: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        said = json.loads(request.content) if request.content else {}
        if request.url.path.endswith("/runs/get"):
            return httpx.Response(200, json={"run": {"info": {"experiment_id": "7"}}})
        if request.url.path.endswith("/runs/search"):
            assert said["experiment_ids"] == ["7"]
            return httpx.Response(200, json={"runs": runs} if runs else {})
        assert {"key": "migrate_ckpt.job", "value": "k"} in said["tags"]
        assert {"key": "mlflow.parentRunId", "value": "r0"} in said["tags"]
        runs.append({"info": {"run_id": "r1", "artifact_uri": "mlflow-artifacts:/7/r1/artifacts"}})
        return httpx.Response(200, json={"run": runs[0]})

    old = ModelVersion("a", "1", "r0")

    async def twice(client: MlflowClient) -> list[tuple[str, str]]:
        return [await client.new_run(old, "k"), await client.new_run(old, "k")]

    first, second = Server(answer).run(twice)
    assert first == second == ("r1", "mlflow-artifacts:/7/r1/artifacts")
    assert len(runs) == 1


class Store:
    """A server's artifacts: folders by their paths."""

    def __init__(self) -> None:
        self.files = {"0/r/artifacts/a b.ckpt": b"12345", "0/r/artifacts/sub/x": b"", "0/r/y": b"1"}

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = httpx.URL(request.url).path.removeprefix("/api/2.0/mlflow-artifacts/artifacts")
        if not path:
            return httpx.Response(200, json={"files": self._list(request.url.params["path"])})
        key = path.lstrip("/")
        if request.method == "PUT":
            self.files[key] = request.content
            return httpx.Response(200, json={})
        if key not in self.files:
            return httpx.Response(404, json={"message": "No such artifact"})
        return httpx.Response(200, content=self.files[key])

    def _list(self, folder: str) -> list[dict[str, Any]]:
        below = {
            key.removeprefix(f"{folder}/"): len(content)
            for key, content in self.files.items()
            if key.startswith(f"{folder}/")
        }
        names = {name.partition("/")[0]: "/" in name for name in below}
        return [
            {"path": name, "is_dir": True}
            if is_dir
            else {"path": name, "is_dir": False, "file_size": below[name]}
            for name, is_dir in names.items()
        ]


def test_artifacts_are_listed_read_and_written_below_their_root() -> None:
    store = Store()

    async def work(client: MlflowClient) -> tuple[Any, bytes]:
        artifacts = ProxiedArtifacts(client, "0/r/artifacts")
        await artifacts.write("new/b.ckpt", some, 3)
        read = b"".join([block async for block in artifacts.read("a b.ckpt")])
        return await artifacts.list(), read

    async def some_blocks() -> AsyncIterator[bytes]:
        yield b"ab"
        yield b"c"

    def some() -> AsyncIterator[bytes]:
        return some_blocks()

    listed, read = Server(store).run(work)

    assert listed == [Artifact("a b.ckpt", 5), Artifact("new/b.ckpt", 3), Artifact("sub/x", 0)]
    assert read == b"12345"
    assert store.files["0/r/artifacts/new/b.ckpt"] == b"abc"


def test_artifact_that_is_not_there_is_said() -> None:
    async def work(client: MlflowClient) -> bytes:
        artifacts = ProxiedArtifacts(client, "0/r/artifacts")
        return b"".join([block async for block in artifacts.read("none")])

    with pytest.raises(ServiceError) as caught:
        Server(Store()).run(work)

    assert caught.value.error_type == "registry_not_found"


@pytest.mark.parametrize("uri", ["file:///etc", "dbfs:/a", "http://elsewhere/a", "/etc"])
def test_artifacts_elsewhere_are_not_reached(uri: str) -> None:
    async def work(client: MlflowClient) -> Any:
        nothing: Any = None
        return open_artifacts(uri, client, nothing, role="source")

    with pytest.raises(ServiceError, match="where this service does not reach them"):
        Server(Store()).run(work)

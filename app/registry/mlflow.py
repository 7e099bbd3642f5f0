"""MLflow's registry, by its REST API (2.0, as MLflow 3 answers it).

    versions   /mlflow/model-versions/…, /mlflow/registered-models/…, /mlflow/runs/…
    artifacts  /mlflow-artifacts/artifacts/…, where the server hands them on; in a bucket otherwise

Credentials are the environment's, under MLflow's own names: MLFLOW_TRACKING_TOKEN, or
MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any
from urllib.parse import quote

import httpx

from app.errors import ServiceError
from app.registry.versions import ModelVersion
from app.storage.attempts import attempts

API = "/api/2.0"
CONNECT_SECONDS = 10.0
# A proxied upload is answered when its store has all of it.
SILENCE_SECONDS = 300.0
PAGE = 200
BLOCK_BYTES = 4 * 2**20
# MLflow's own limit is 5000 for tags of versions.
MAX_TAG_CHARACTERS = 5000


class MlflowClient:
    """Asks one server; what it does not answer at the moment is asked again a few times."""

    def __init__(self, url: str, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.url = url.rstrip("/")
        self._client = httpx.AsyncClient(
            base_url=f"{self.url}{API}",
            auth=_auth(os.environ),
            headers={"User-Agent": "migrate-ckpt"},
            timeout=httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS),
            follow_redirects=False,
            transport=transport,
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def version(self, name: str, version: str) -> ModelVersion:
        """Return a version as it stands.

        Raises:
            ServiceError: there is none, or the server does not answer.
        """
        query = {"name": name, "version": version}
        found = await self._get("/mlflow/model-versions/get", query)
        return ModelVersion.from_dict(found["model_version"])

    async def versions(self, name: str | None = None) -> AsyncIterator[ModelVersion]:
        """Hand out all versions there are, of one model or of all."""
        query: dict[str, str] = {"max_results": str(PAGE)}
        if name is not None:
            query["filter"] = f"name='{name}'"
        while True:
            page = await self._get("/mlflow/model-versions/search", query)
            for found in page.get("model_versions", ()):
                yield ModelVersion.from_dict(found)
            if not page.get("next_page_token"):
                return
            query["page_token"] = page["next_page_token"]

    async def artifacts_of(self, version: ModelVersion) -> str:
        """Return the URI below which a version's artifacts lie, whatever they were registered as."""
        query = {"name": version.name, "version": version.version}
        found = await self._get("/mlflow/model-versions/get-download-uri", query)
        uri = str(found["artifact_uri"])
        scheme, _, rest = uri.partition(":")
        named, _, path = rest.lstrip("/").partition("/")
        if scheme == "runs":
            run = await self._get("/mlflow/runs/get", {"run_id": named})
            uri = str(run["run"]["info"]["artifact_uri"])
        elif scheme == "models":
            model = await self._get(f"/mlflow/logged-models/{quote(named, safe='')}", {})
            uri = str(model["model"]["info"]["artifact_uri"])
        else:
            return uri
        return f"{uri.rstrip('/')}/{path}" if path else uri

    async def new_run(self, version: ModelVersion, key: str) -> tuple[str, str]:
        """Return the id and the artifacts' URI of the run that a migration is; the same for the same key."""
        experiment = await self._experiment_of(version)
        tag = "migrate_ckpt.job"
        known = await self._post(
            "/mlflow/runs/search",
            {"experiment_ids": [experiment], "filter": f"tags.`{tag}` = '{key}'", "max_results": 1},
        )
        if known.get("runs"):
            info = known["runs"][0]["info"]
            return info["run_id"], info["artifact_uri"]
        tags = {tag: key, "mlflow.source.name": "migrate-ckpt"}
        if version.run_id:
            tags["mlflow.parentRunId"] = version.run_id
        made = await self._post(
            "/mlflow/runs/create",
            {
                "experiment_id": experiment,
                "run_name": f"migrate-ckpt {version.name} {version.version}",
                "start_time": _now_ms(),
                "tags": _tag_list(tags),
            },
        )
        info = made["run"]["info"]
        return info["run_id"], info["artifact_uri"]

    async def end_run(self, run_id: str) -> None:
        body = {"run_id": run_id, "status": "FINISHED", "end_time": _now_ms()}
        await self._post("/mlflow/runs/update", body)

    async def new_version(
        self, name: str, source: str, run_id: str, tags: Mapping[str, str], description: str
    ) -> ModelVersion:
        """Register what lies at this URI as the next version of a model."""
        made = await self._post(
            "/mlflow/model-versions/create",
            {
                "name": name,
                "source": source,
                "run_id": run_id,
                "tags": _tag_list(tags),
                "description": description,
            },
        )
        return ModelVersion.from_dict(made["model_version"])

    async def tag(self, version: ModelVersion, tags: Mapping[str, str]) -> None:
        for each in _tag_list(tags):
            body = {"name": version.name, "version": version.version, **each}
            await self._post("/mlflow/model-versions/set-tag", body)

    async def aliases(self, version: ModelVersion) -> list[str]:
        """Return the aliases that stand for this version."""
        found = await self._get("/mlflow/registered-models/get", {"name": version.name})
        listed = found["registered_model"].get("aliases", ())
        return [each["alias"] for each in listed if str(each["version"]) == version.version]

    async def move_alias(self, alias: str, to: ModelVersion) -> None:
        body = {"name": to.name, "alias": alias, "version": to.version}
        await self._post("/mlflow/registered-models/alias", body)

    async def list_artifacts(self, path: str) -> list[dict[str, Any]]:
        """Return what lies in a folder that the server hands on: path, is_dir and file_size of each."""
        found = await self._get("/mlflow-artifacts/artifacts", {"path": path})
        listed: list[dict[str, Any]] = found.get("files", [])
        return listed

    async def read_artifact(self, path: str) -> AsyncIterator[bytes]:
        with _translated(self.url):
            # A checkpoint does not get smaller on the way, and its size is what was listed.
            headers = {"Accept-Encoding": "identity"}
            async with self._client.stream("GET", _artifact(path), headers=headers) as response:
                await _raise_for(response, self.url)
                async for block in response.aiter_bytes(BLOCK_BYTES):
                    yield block

    async def write_artifact(self, path: str, blocks: AsyncIterator[bytes], size: int) -> None:
        with _translated(self.url):
            headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
            response = await self._client.put(_artifact(path), content=blocks, headers=headers)
            await _raise_for(response, self.url)

    async def _experiment_of(self, version: ModelVersion) -> str:
        if version.run_id:
            found = await self._get("/mlflow/runs/get", {"run_id": version.run_id})
            return str(found["run"]["info"]["experiment_id"])
        # MLflow's "Default".
        return "0"

    async def _get(self, path: str, query: Mapping[str, str]) -> dict[str, Any]:
        return await self._ask("GET", path, params=dict(query))

    async def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return await self._ask("POST", path, json=dict(body))

    async def _ask(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        async for attempt in attempts():
            with attempt, _translated(self.url):
                response = await self._client.request(method, path, **options)
                await _raise_for(response, self.url)
                answer: dict[str, Any] = response.json()
                return answer
        raise AssertionError("unreachable: the last attempt raises")


def _auth(environment: Mapping[str, str]) -> httpx.Auth | None:
    token = environment.get("MLFLOW_TRACKING_TOKEN")
    if token:
        return _Bearer(token)
    user = environment.get("MLFLOW_TRACKING_USERNAME")
    if user:
        return httpx.BasicAuth(user, environment.get("MLFLOW_TRACKING_PASSWORD", ""))
    return None


class _Bearer(httpx.Auth):
    def __init__(self, token: str) -> None:
        self._token = token

    def auth_flow(self, request: httpx.Request) -> Iterator[httpx.Request]:  # type: ignore[override]
        request.headers["Authorization"] = f"Bearer {self._token}"
        yield request


async def _raise_for(response: httpx.Response, url: str) -> None:
    """Make an error of an answer that is none.

    Raises:
        ServiceError: `registry_not_found`, `registry_refused` or, where another try may help, `registry_unavailable`.
    """
    if response.is_success:
        return
    status = response.status_code
    await response.aread()
    try:
        said = str(response.json().get("message", ""))[:300]
    except ValueError:
        said = ""
    if status == 404:
        raise ServiceError("registry_not_found", f"MLflow at {url} has no such thing: {said}")
    if status == 429 or status >= 500:
        message = f"MLflow at {url} answered {status}."
        raise ServiceError("registry_unavailable", message, retryable=True)
    raise ServiceError("registry_refused", f"MLflow at {url} answered {status}: {said}")


@contextlib.contextmanager
def _translated(url: str) -> Iterator[None]:
    try:
        yield
    except (httpx.HTTPError, ValueError) as error:
        message = f"MLflow at {url} cannot be reached at the moment ({type(error).__name__})."
        raise ServiceError("registry_unavailable", message, retryable=True) from error


def _artifact(path: str) -> str:
    return f"/mlflow-artifacts/artifacts/{quote(path)}"


def _tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value[:MAX_TAG_CHARACTERS]} for key, value in tags.items()]


def _now_ms() -> int:
    return int(time.time() * 1000)

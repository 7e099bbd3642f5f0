"""A real MLflow server for tests, in an environment of its own, on loopback only, its telemetry off."""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.conftest import eventually, free_port

PROGRAM = Path(__file__).resolve().parent.parent.parent / ".venv-mlflow" / "bin" / "mlflow"
START_SECONDS = 180


@dataclass(frozen=True)
class Mlflow:
    """A server that runs, and what a client of it needs here."""

    url: str

    def get(self, path: str, **query: str) -> dict[str, Any]:
        return self._answer(
            httpx.get(f"{self.url}/api/2.0/mlflow/{path}", params=query, timeout=60)
        )

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        return self._answer(httpx.post(f"{self.url}/api/2.0/mlflow/{path}", json=body, timeout=60))

    def _answer(self, answer: httpx.Response) -> dict[str, Any]:
        assert answer.is_success, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def call_back(self, url: str, secret: str) -> None:
        """Have every new version told to this address."""
        self.post(
            "webhooks",
            name=secrets.token_hex(4),
            url=url,
            secret=secret,
            events=[{"entity": "MODEL_VERSION", "action": "CREATED"}],
        )

    def register(self, model: str, files: dict[str, bytes], *, file: str | None = None) -> str:
        """Log these files with a new run, and register them, or one, as a version of a model; return which."""
        run = self.post("runs/create", experiment_id="0", start_time=1)["run"]["info"]
        source = f"{run['artifact_uri']}/model"
        for path, content in files.items():
            self.put(f"{source}/{path}", content)
        if file is not None:
            source = f"{source}/{file}"
        return self.register_source(model, source, run_id=run["run_id"])

    def register_source(self, model: str, source: str, **members: Any) -> str:
        """Register what lies at this URI as a version of a model; return which."""
        with contextlib.suppress(AssertionError):
            self.post("registered-models/create", name=model)
        made = self.post("model-versions/create", name=model, source=source, **members)
        version: str = made["model_version"]["version"]
        return version

    def put(self, uri: str, content: bytes) -> None:
        httpx.put(self._address(uri), content=content, timeout=60).raise_for_status()

    def read(self, uri: str) -> bytes:
        return httpx.get(self._address(uri), timeout=60).raise_for_status().content

    def _address(self, uri: str) -> str:
        path = uri.removeprefix("mlflow-artifacts:/")
        return f"{self.url}/api/2.0/mlflow-artifacts/artifacts/{path}"

    def versions(self, model: str) -> list[dict[str, Any]]:
        """All versions of a model, the oldest first, each with its tags as a mapping."""
        found = self.get("model-versions/search", filter=f"name='{model}'", max_results="100")
        for each in found.get("model_versions", ()):
            each["tags"] = {tag["key"]: tag["value"] for tag in each.get("tags", ())}
        return sorted(found.get("model_versions", ()), key=lambda each: int(each["version"]))

    def tags(self, model: str, version: str) -> dict[str, str]:
        (found,) = (each for each in self.versions(model) if each["version"] == version)
        return dict(found["tags"])


@contextlib.contextmanager
def running_mlflow(folder: Path) -> Iterator[Mlflow]:
    """Start a server with nothing in it; it and all that it has started are killed in the end."""
    if not PROGRAM.exists():
        pytest.skip("MLflow is not installed (make acceptance does that, in .venv-mlflow)")
    port = free_port()
    environment = {
        **os.environ,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        # Without these three nothing arrives here: see docs/mlflow.md.
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": base64.urlsafe_b64encode(
            secrets.token_bytes(32)
        ).decode(),
        "MLFLOW_WEBHOOK_CACHE_TTL": "1",
    }
    command = [str(PROGRAM), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        is_up = eventually(lambda: _answers(url) or process.poll(), seconds=START_SECONDS)
        assert is_up, (folder / "log").read_text()
        assert process.poll() is None, (folder / "log").read_text()
        yield Mlflow(url)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False

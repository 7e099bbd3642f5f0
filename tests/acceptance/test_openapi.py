"""The interface's description is complete and true: requests made from it are answered as it says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.hooks.signatures import MLFLOW
from tests.acceptance.conftest import Service, running_service, write_sets

schemathesis = pytest.importorskip(
    "schemathesis", reason="schemathesis is not installed: it needs Python 3.11"
)
pytest.importorskip("dbos", reason="the extra [jobs] is not installed")
from tests.acceptance.openapi_hooks import checkpoint  # noqa: E402 - it needs schemathesis

pytestmark = pytest.mark.acceptance

TOKEN = "mck_" + "t" * 30
AUTHORIZATION = {"Authorization": f"Bearer {TOKEN}"}

HOOK_SECRET = "whsec_" + "A" * 32
MLFLOW_SECRET = "of-the-test"
HOOKS = Path(__file__).with_name("openapi_hooks.py")

NOT_CHECKED = (
    # What no schema can say: that bytes are a checkpoint, that a set has this name, that the digest is the body's.
    "positive_data_acceptance",
    # DELETE cancels a job, which is there afterwards as before; these two take it for the end of a resource.
    "use_after_free",
    "ensure_resource_availability",
)


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with everything: access tokens, jobs and hooks."""
    folder = tmp_path_factory.mktemp("described")
    write_sets(folder / "migrations")
    # Requests are made of every name that the service tells: of one that sleeps for a minute, too.
    for path in (folder / "migrations").iterdir():
        if path.is_dir() and path.name != "fails":
            shutil.rmtree(path)
    (folder / "tokens").write_text(f"ci:migrate,read:{TOKEN}\n")
    with running_service(
        folder,
        MIGRATE_CKPT_TOKENS_FILE=str(folder / "tokens"),
        MIGRATE_CKPT_DATA_FOLDER=str(folder / "data"),
        MIGRATE_CKPT_HOOK_SECRET=HOOK_SECRET,
        # Nobody listens there: the job that a delivery becomes fails, later.
        MIGRATE_CKPT_MLFLOW_URL="http://127.0.0.1:1",
        MIGRATE_CKPT_MLFLOW_SECRET=MLFLOW_SECRET,
    ) as service:
        yield service


@pytest.fixture(scope="module")
def description(described: Service) -> Any:
    return schemathesis.openapi.from_url(f"{described.url}/openapi.json")


def test_requests_made_from_the_description_are_answered_as_it_says(
    described: Service, tmp_path: Path
) -> None:
    """All phases of schemathesis: boundary values of each parameter, random requests, and sequences of them."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{described.url}/openapi.json"]
    options = ["--phases=examples,coverage,fuzzing,stateful", "--max-examples=25"]
    options += ["--generation-deterministic", "--continue-on-failure", "--request-timeout=60"]
    options += [f"--exclude-checks={','.join(NOT_CHECKED)}"]
    done = subprocess.run(
        [*command, *options, f"--header=Authorization: Bearer {TOKEN}"],
        env={**os.environ, "SCHEMATHESIS_HOOKS": str(HOOKS), "NO_COLOR": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    seen = statuses(described)
    operations = operations_of(described)
    # What is asked for by an id or a name that is made up is not there.
    named = {
        each
        for each in operations
        if each.endswith(("_id}", "_id}/result", "_id}/deliveries", "_id}/events", "{name}"))
    }
    # What is made up is not signed.
    hooks = {each for each in operations if "/hooks/" in each}
    assert all(seen[each] == {"401"} for each in hooks)
    refused = {each for each in operations - named - hooks if not seen[each] & {"200", "202"}}
    assert refused == set()


def operations_of(service: Service) -> set[str]:
    paths = httpx.get(f"{service.url}/openapi.json").json()["paths"]
    return {f"{method.upper()} {path}" for path in paths for method in paths[path]}


def statuses(service: Service) -> dict[str, set[str]]:
    """The statuses that each operation was answered with, as the service's own metrics have them."""
    seen: dict[str, set[str]] = defaultdict(set)
    text = httpx.get(f"{service.url}/metrics", headers=AUTHORIZATION).text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "migrate_ckpt_requests_total":
                labels = sample.labels
                seen[labels["route"]].add(labels["status"])
    return seen


@pytest.mark.parametrize(
    ("headers", "status", "content_type"),
    [
        ({}, 200, "application/octet-stream"),
        ({"Accept": "application/zip"}, 200, "application/zip"),
        ({"Accept": "application/json"}, 200, "application/json"),
        ({"Prefer": "respond-async"}, 202, "application/json"),
        ({"Want-Repr-Digest": "sha-256=1"}, 200, "application/octet-stream"),
    ],
    ids=["file", "zip", "finished job", "job", "digest"],
)
@pytest.mark.parametrize("path", ["/migrate", "/migrate/{filename}"])
def test_every_kind_of_answer_is_described(
    described: Service,
    description: Any,
    path: str,
    headers: dict[str, str],
    status: int,
    content_type: str,
) -> None:
    method = "PUT" if "filename" in path else "POST"
    response = httpx.request(
        method,
        described.url + path.format(filename="old.ckpt"),
        content=checkpoint(3),
        headers={**AUTHORIZATION, **headers},
        timeout=60,
    )

    assert response.status_code == status
    assert response.headers["content-type"] == content_type
    description[path][method].validate_response(response)
    described_headers = description.raw_schema["paths"][path][method.lower()]["responses"]
    expected = described_headers[str(status)]["headers"]
    ours = {"location", "preference-applied", "migration-report", "repr-digest", "x-request-id"}
    assert ours & set(response.headers) <= {name.lower() for name in expected}


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ({"data": {"name": "a", "version": "1"}}, 202),
        ({"data": {"name": "a", "version": "1"}}, 200),
        ({"action": "deleted"}, 200),
        ({"data": {}}, 400),
    ],
    ids=["new", "known", "ignored", "malformed"],
)
def test_answers_of_a_hook_are_described(
    described: Service, description: Any, said: dict[str, Any], status: int
) -> None:
    body = json.dumps({"entity": "model_version", "action": "created", **said}).encode()
    now = str(int(time.time()))
    signature = MLFLOW.sign(MLFLOW_SECRET, body=body, delivery_id="1", time=now)
    headers = {
        "X-MLflow-Delivery-Id": "1",
        "X-MLflow-Timestamp": now,
        "X-MLflow-Signature": signature,
        "Content-Type": "application/json",
    }

    answer = httpx.post(f"{described.url}/hooks/mlflow", content=body, headers=headers)

    assert answer.status_code == status
    description["/hooks/mlflow"]["POST"].validate_response(answer)


def test_job_is_described_from_its_events_to_its_result(
    described: Service, description: Any
) -> None:
    jobs = description["/jobs/{job_id}"]["GET"]
    with httpx.Client(base_url=described.url, headers=AUTHORIZATION, timeout=60) as client:
        accepted = client.post("/jobs", content=checkpoint(4))
        description["/jobs"]["POST"].validate_response(accepted)
        where = accepted.headers["location"]
        jobs.validate_response(client.get(where))
        events = client.get(f"{where}/events")
        description["/jobs/{job_id}/events"]["GET"].validate_response(events)
        ended = client.get(where)
        jobs.validate_response(ended)
        assert ended.json()["status"] == "succeeded"
        operation = description["/jobs/{job_id}/result"]["GET"]
        for headers, status in (
            ({}, 200),
            ({"Range": "bytes=0-9"}, 206),
            ({"Range": "bytes=9999999-"}, 416),
            ({"Range": "bytes=x"}, 400),
        ):
            answer = client.get(f"{where}/result", headers=headers)
            assert answer.status_code == status
            operation.validate_response(answer)
            if status >= 400:
                assert answer.headers["content-type"] == "application/problem+json"
        tag = client.get(f"{where}/result").headers["etag"]
        unchanged = client.get(f"{where}/result", headers={"If-None-Match": tag})
        assert unchanged.status_code == 304
        operation.validate_response(unchanged)

"""The routes of jobs, with the whole service behind them but for the socket."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi import FastAPI

from app.main import create_app
from app.settings import Settings
from tests.app.conftest import Client

pytest.importorskip("dbos", reason="the extra [jobs] is not installed")

NOW = {"Accept": "application/json"}


def checkpoint(value: float = 1.0) -> bytes:
    file = io.BytesIO()
    torch.save({"a": torch.full((100,), value)}, file)
    return file.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def client(
    start: Callable[[FastAPI], Client], tmp_path_factory: pytest.TempPathFactory, data: Path
) -> Client:
    migrations = tmp_path_factory.mktemp("migrations")
    (migrations / "0001_rename.py").write_text(
        'def handle(ckpt):\n    ckpt["b"] = ckpt.pop("a")\n    return ckpt\n'
    )
    (migrations / "fails").mkdir()
    (migrations / "fails" / "0001_none.py").write_text("def handle(ckpt):\n    pass\n")
    settings = Settings(
        migrations_folder=migrations,
        scratch_folder=tmp_path_factory.mktemp("scratch"),
        data_folder=data,
    )
    return start(create_app(settings))


def finish(client: Client, content: bytes, query: str = "", **headers: str) -> dict[str, Any]:
    answer = client.post("/jobs" + query, content=content, headers=headers)
    assert answer.status_code == 202
    path = answer.headers["location"]
    document: dict[str, Any] = client.get(path, headers={"Prefer": "wait=30"}).json()
    return document


def test_upload_becomes_a_job_whose_result_is_the_migrated_file(client: Client) -> None:
    done = finish(client, checkpoint())
    answer = client.get(done["result"]["url"])

    assert done["status"] == "succeeded"
    assert done["report"]["ran"] == ["0001_rename"]
    assert set(torch.load(io.BytesIO(answer.content), weights_only=True)) >= {"b"}
    assert answer.headers["etag"] == f'"{done["result"]["fingerprint"]}"'
    assert len(answer.content) == done["result"]["size"]


def test_result_is_served_in_ranges(client: Client) -> None:
    url = finish(client, checkpoint())["result"]["url"]
    whole = client.get(url)
    etag = whole.headers["etag"]

    part = client.get(url, headers={"Range": "bytes=10-19", "If-Range": etag})
    outdated = client.get(url, headers={"Range": "bytes=10-19", "If-Range": '"other"'})
    unchanged = client.get(url, headers={"If-None-Match": etag})

    assert (part.status_code, part.content) == (206, whole.content[10:20])
    assert (outdated.status_code, outdated.content) == (200, whole.content)
    assert (unchanged.status_code, unchanged.content) == (304, b"")


def test_json_is_the_document_of_a_finished_job(client: Client) -> None:
    answer = client.post("/migrate", content=checkpoint(), headers=NOW)

    assert answer.status_code == 200
    assert answer.json()["status"] == "succeeded"
    assert answer.headers["location"] == answer.json()["url"]


def test_wait_that_is_long_enough_is_answered_with_the_file(client: Client) -> None:
    prefer = {"Prefer": "respond-async, wait=30"}

    answer = client.post("/migrate", content=checkpoint(), headers=prefer)

    assert answer.status_code == 200
    assert answer.headers["preference-applied"] == "respond-async"
    assert set(torch.load(io.BytesIO(answer.content), weights_only=True)) >= {"b"}


def test_failed_job_is_answered_with_its_problem(client: Client) -> None:
    done = finish(client, checkpoint(), "?set=fails")
    result = client.get(f"{done['url']}/result")
    direct = client.post("/migrate?set=fails", content=checkpoint(), headers=NOW)

    assert (done["status"], done["result"]) == ("failed", None)
    for problem in (done["problem"], result.json(), direct.json()):
        assert problem["error_type"] == "migration_failed"
        assert problem["migration"] == "0001_none"
    assert result.status_code == direct.status_code == 422


def test_same_idempotency_key_is_the_same_job(client: Client) -> None:
    key = {"Idempotency-Key": '"once"'}

    first = client.post("/jobs", content=checkpoint(2), headers=key)
    again = client.post("/jobs", content=checkpoint(2), headers=key)
    other = client.post("/jobs", content=checkpoint(3), headers=key)

    assert again.headers["location"] == first.headers["location"]
    assert (other.status_code, other.json()["error_type"]) == (422, "key_reused")


def test_result_that_is_no_longer_kept_is_gone_and_its_job_is_not(
    client: Client, data: Path
) -> None:
    done = finish(client, checkpoint(4))
    kept = data / "results" / done["result"]["fingerprint"]
    kept.rename(data / "elsewhere")

    gone = client.get(done["result"]["url"])
    document = client.get(done["url"]).json()

    assert (gone.status_code, gone.json()["error_type"]) == (410, "result_expired")
    assert (document["status"], document["result"]) == ("succeeded", None)


@pytest.mark.parametrize("suffix", ["", "/result", "/events"])
def test_unknown_job_is_named(client: Client, suffix: str) -> None:
    answer = client.get(f"/jobs/nope{suffix}")

    assert (answer.status_code, answer.json()["error_type"]) == (404, "unknown_job")


def test_wrong_status_is_refused_in_words_that_name_no_file_of_ours(client: Client) -> None:
    answer = client.get("/jobs?status=lost")

    assert (answer.status_code, answer.json()["error_type"]) == (400, "invalid_parameter")
    assert '"status"' in answer.json()["detail"]
    assert ".py" not in answer.json()["detail"]


def test_service_says_that_it_can_have_no_second_replica(client: Client) -> None:
    answer = client.get("/readyz?verbose").json()

    assert answer["replicas"].startswith("one replica: jobs are kept in SQLite")


def test_result_has_the_digest_that_is_wanted_of_all_of_it(client: Client) -> None:
    done = finish(client, checkpoint(21.0))
    url = done["result"]["url"]
    whole = client.get(url)

    part = client.get(url, headers={"Range": "bytes=0-9", "Want-Repr-Digest": "sha-256=1"})

    digest = base64.b64encode(hashlib.sha256(whole.content).digest()).decode()
    assert part.status_code == 206
    assert part.headers["repr-digest"] == f"sha-256=:{digest}:"
    assert "repr-digest" not in whole.headers


@pytest.mark.parametrize("headers", [{}, {"Want-Repr-Digest": "sha-256=1"}], ids=["", "digest"])
def test_result_that_expires_just_now_is_said_to(
    client: Client, data: Path, headers: dict[str, str]
) -> None:
    done = finish(client, checkpoint(22.0 + len(headers)))
    kept = data / "results" / done["result"]["fingerprint"] / "checkpoint"
    office = client.app.state.jobs
    find = office.results.find

    async def find_and_lose(fingerprint: str) -> Any:
        found = await find(fingerprint)
        kept.unlink(missing_ok=True)
        return found

    office.results.find = find_and_lose
    try:
        answer = client.get(done["result"]["url"], headers=headers)
    finally:
        office.results.find = find

    assert (answer.status_code, answer.json()["error_type"]) == (410, "result_expired")

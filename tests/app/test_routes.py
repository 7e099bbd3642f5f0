"""The whole service but for the socket: what each route answers, and what it refuses."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi import FastAPI

from app.main import create_app
from app.settings import Settings
from tests.app.conftest import Client

RENAME = '''"""Rename a to b."""

def handle(ckpt):
    ckpt["b"] = ckpt.pop("a")
    return ckpt
'''


@pytest.fixture(scope="module")
def migrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("migrations")
    (folder / "0001_rename.py").write_text(RENAME)
    (folder / "0002_keep.py").write_text("def handle(ckpt):\n    return ckpt\n")
    (folder / "vision").mkdir()
    (folder / "vision" / "0001_none.py").write_text("def handle(ckpt):\n    pass\n")
    return folder


@pytest.fixture(scope="module")
def client(
    start: Callable[[FastAPI], Client], migrations: Path, tmp_path_factory: pytest.TempPathFactory
) -> Client:
    scratch = tmp_path_factory.mktemp("scratch")
    settings = Settings(
        migrations_folder=migrations, scratch_folder=scratch, max_upload_bytes=100_000
    )
    return start(create_app(settings))


@pytest.fixture(scope="module")
def old() -> bytes:
    file = io.BytesIO()
    torch.save({"a": torch.arange(100)}, file)
    return file.getvalue()


def load(content: bytes) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
    return loaded


def test_form_is_answered_with_the_migrated_file(client: Client, old: bytes) -> None:
    answer = client.post("/migrate", files={"file": ("old.pt", old)})

    assert answer.status_code == 200
    assert "a" not in load(answer.content)
    assert torch.equal(load(answer.content)["b"], torch.arange(100))
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert 'filename="old.migrated.pt"' in answer.headers["content-disposition"]


def test_report_header_is_short_and_ascii(client: Client, old: bytes) -> None:
    header = client.post("/migrate", content=old).headers["migration-report"]

    assert header.isascii()
    assert len(header) <= 2048
    report = json.loads(header)
    assert report["ran"] == ["0001_rename", "0002_keep"]
    assert report["pending"] == report["missed"] == report["unknown"] == report["changed"] == []
    assert report["set"] == "default"
    assert len(report["fingerprint"]) == 64


def test_run_stops_after_the_migration_that_is_asked_for(client: Client, old: bytes) -> None:
    in_query = client.post("/migrate?to=0001_rename", content=old)
    in_form = client.post("/migrate", files={"file": old}, data={"to": "0001_rename"})

    assert json.loads(in_query.headers["migration-report"])["ran"] == ["0001_rename"]
    assert in_form.content == in_query.content
    assert in_form.headers["migration-report"] == in_query.headers["migration-report"]


def test_policy_and_permission_are_obeyed(client: Client, old: bytes) -> None:
    file = io.BytesIO()
    torch.save({**load(old), "_migrate-ckpt-migrations": ["0009_of_another_set"]}, file)

    refused = client.post("/migrate", content=file.getvalue())
    allowed = client.post("/migrate?allow_unknown_history=true", content=file.getvalue())

    assert (refused.status_code, refused.json()["error_type"]) == (422, "incompatible_history")
    assert refused.json()["plan"]["unknown"] == ["0009_of_another_set"]
    assert allowed.status_code == 200


def test_fingerprint_names_the_input_and_what_is_asked(client: Client, old: bytes) -> None:
    def fingerprint(path: str, content: bytes) -> str:
        report = json.loads(client.post(path, content=content).headers["migration-report"])
        value: str = report["fingerprint"]
        return value

    first = fingerprint("/migrate", old)

    assert fingerprint("/migrate", old) == first
    assert fingerprint("/migrate?to=0001_rename", old) != first


@pytest.mark.parametrize("path", ["/migrate", "/plan"])
@pytest.mark.parametrize(
    ("query", "status", "error_type"),
    [
        ("polcy=strict", 400, "unknown_parameter"),
        ("policy=lax", 400, "invalid_parameter"),
        ("to=a&to=b", 400, "invalid_parameter"),
        ("set=audio", 404, "unknown_set"),
        ("to=0009_none", 422, "unknown_migration"),
    ],
)
def test_query_that_cannot_be_is_refused(
    client: Client, old: bytes, path: str, query: str, status: int, error_type: str
) -> None:
    answer = client.post(f"{path}?{query}", content=old)

    assert (answer.status_code, answer.json()["error_type"]) == (status, error_type)


def test_plan_with_changes_says_what_each_step_would_do(client: Client, old: bytes) -> None:
    first, second = client.post("/plan?changes=true", content=old).json()["steps"]

    tensor = {"kind": "tensor", "dtype": "int64", "shape": [100], "nbytes": 800}
    assert first["changes"] == [
        {
            "change": "renamed",
            "before": {"path": ["a"], **tensor},
            "after": {"path": ["b"], **tensor},
        }
    ]
    assert (first["counts"], first["truncated"]) == ({"renamed": 1}, False)
    assert second["changes"] == []


def test_plan_without_changes_has_none(client: Client, old: bytes) -> None:
    assert "changes" not in client.post("/plan", content=old).json()["steps"][0]


def test_plan_names_the_migration_that_would_fail(client: Client, old: bytes) -> None:
    answer = client.post("/plan?set=vision&changes=true", content=old)

    [step] = answer.json()["steps"]
    assert answer.status_code == 200
    assert step["changes"] is None
    assert step["error"]["migration"] == "0001_none"


def test_migrate_takes_no_parameter_of_the_plan(client: Client, old: bytes) -> None:
    answer = client.post("/migrate?changes=true", content=old)

    assert (answer.status_code, answer.json()["parameter"]) == (400, "changes")


def test_parameter_in_query_and_form_is_given_twice(client: Client, old: bytes) -> None:
    answer = client.post("/migrate?to=0001_rename", files={"file": old}, data={"to": "0002_keep"})

    assert (answer.status_code, answer.json()["parameter"]) == (400, "to")


def test_inspect_has_no_parameters(client: Client, old: bytes) -> None:
    answer = client.post("/inspect?set=default", content=old)

    assert (answer.status_code, answer.json()["error_type"]) == (400, "unknown_parameter")


def test_migration_without_return_is_named(client: Client, old: bytes) -> None:
    problem = client.post("/migrate?set=vision", content=old).json()

    assert problem["error_type"] == "migration_failed"
    assert "0001_none" in problem["detail"]


@pytest.mark.parametrize("path", ["/migrate", "/plan", "/inspect"])
def test_file_that_is_no_checkpoint_is_refused(client: Client, path: str) -> None:
    answer = client.post(path, content=b"these are not the bytes")

    assert (answer.status_code, answer.json()["error_type"]) == (422, "not_a_checkpoint")


def test_file_over_the_limit_is_refused(client: Client) -> None:
    answer = client.post("/migrate", content=b"x" * 100_001)

    assert (answer.status_code, answer.json()["error_type"]) == (413, "too_large")


def test_refusal_that_can_be_early_reads_no_body(client: Client) -> None:
    read = []

    async def body() -> AsyncIterator[bytes]:
        read.append(True)
        yield b""

    for path, headers in [
        ("/migrate?polcy=x", {}),
        ("/migrate?set=audio", {}),
        ("/migrate", {"Accept": "application/json"}),
        ("/migrate", {"Content-Length": "100001"}),
    ]:
        # What a client sends unasked is read, but only to throw it away.
        headers = {**headers, "Expect": "100-continue"}
        assert client.post(path, content=body(), headers=headers).status_code >= 400
    assert not read


def test_sets_are_listed_in_order_with_titles_and_digests(client: Client) -> None:
    sets = client.get("/migrations").json()["sets"]

    assert [entry["set"] for entry in sets] == ["default", "vision"]
    assert [step["name"] for step in sets[0]["migrations"]] == ["0001_rename", "0002_keep"]
    assert sets[0]["migrations"][0]["title"] == "Rename a to b."
    assert sets[0]["migrations"][0]["declared"] is False
    assert sets[0] == client.get("/migrations/default").json()


def test_set_that_there_is_not_is_refused_with_those_there_are(client: Client) -> None:
    answer = client.get("/migrations/audio")

    assert answer.status_code == 404
    assert answer.json()["names"] == ["default", "vision"]


def test_version_names_what_a_result_depends_on(client: Client) -> None:
    version = client.get("/version").json()

    assert version["torch"] == str(torch.__version__)
    assert set(version["sets"]) == {"default", "vision"}


def test_service_is_ready_and_says_what_it_checked(client: Client) -> None:
    assert client.get("/livez").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"status": "ready"}
    checks = client.get("/readyz?verbose").json()["checks"]
    assert set(checks) == {"access", "admission", "jobs", "migrations", "sandbox", "scratch"}
    assert set(checks.values()) == {"ok"}


def test_changed_folder_is_taken_up_and_a_broken_one_is_not(
    client: Client, migrations: Path
) -> None:
    def digest() -> str:
        # The folder has to look the same twice.
        client.app.state.sets.reload()
        client.app.state.sets.reload()
        value: str = client.get("/version").json()["sets"]["vision"]
        return value

    before = digest()
    added = migrations / "vision" / "0002_more.py"
    added.write_text("def handle(ckpt):\n    return ckpt\n")
    after = digest()
    added.write_text("def handle(ckpt:\n")
    still = digest()
    ready = client.get("/readyz?verbose")
    added.unlink()

    assert after != before
    assert still == after
    assert digest() == before
    assert ready.status_code == 200
    assert "0002_more" in ready.json()["checks"]["migrations"]
    assert "still served" in ready.json()["checks"]["migrations"]
    assert client.get("/readyz?verbose").json()["checks"]["migrations"] == "ok"


def test_service_that_stops_is_unready_but_alive(client: Client) -> None:
    client.app.state.admission.stop()

    ready, alive = client.get("/readyz"), client.get("/livez")
    refused = client.post("/migrate", content=b"x")

    client.app.state.admission.is_stopping = False
    assert (ready.status_code, ready.json()["error_type"]) == (503, "not_ready")
    assert ready.json()["checks"]["admission"] == "The service is stopping."
    assert ready.json()["retryable"] is True
    assert alive.status_code == 200
    assert (refused.status_code, refused.json()["error_type"]) == (503, "stopping")
    assert refused.headers["retry-after"] == "1"


def test_slash_too_many_is_not_found_rather_than_sent_elsewhere(client: Client) -> None:
    assert client.post("/migrate/").status_code in (404, 405)


def test_openapi_declares_body_parameters_and_problems(client: Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]

    operation = paths["/migrate"]["post"]
    assert set(operation["requestBody"]["content"]) == {
        "multipart/form-data",
        "application/octet-stream",
    }
    names = [p["name"] for p in operation["parameters"] if p["in"] == "query"]
    assert names == ["set", "to", "policy", "allow_unknown_history", "format"]
    assert {"200", "4XX", "5XX"} <= set(operation["responses"])
    named = paths["/migrate/{filename}"]["put"]["parameters"]
    assert [p["name"] for p in named if p["in"] == "path"] == ["filename"]

"""Each request is counted and logged, whatever became of it."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from app.main import create_app
from app.metrics import Live, Metrics
from app.settings import Settings
from tests.app.conftest import Client

P = "migrate_ckpt_"


@pytest.fixture(scope="module")
def client(start: Callable[[FastAPI], Client], tmp_path_factory: pytest.TempPathFactory) -> Client:
    migrations = tmp_path_factory.mktemp("migrations")
    (migrations / "0001_keep.py").write_text("def handle(ckpt):\n    return ckpt\n")
    (migrations / "fails").mkdir()
    (migrations / "fails" / "0001_keep.py").write_text("def handle(ckpt):\n    return ckpt\n")
    (migrations / "fails" / "0002_fail.py").write_text("def handle(ckpt):\n    raise KeyError(1)\n")
    scratch = tmp_path_factory.mktemp("scratch")
    app = create_app(Settings(migrations_folder=migrations, scratch_folder=scratch))

    @app.get("/livez/breaks")
    async def breaks() -> None:
        raise ZeroDivisionError

    return start(app)


@pytest.fixture(scope="module")
def old() -> bytes:
    file = io.BytesIO()
    torch.save({"a": torch.arange(100)}, file)
    return file.getvalue()


def sample(name: str, *labels: str) -> str:
    """How a sample is called here: in whatever order its labels stand, and without the empty ones."""
    return " ".join([name, *sorted(filter(None, labels))])


def scrape(client: Client) -> dict[str, float]:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        sample(one.name.removeprefix(P), *one.labels.values()): one.value
        for family in text_string_to_metric_families(answer.text)
        for one in family.samples
    }


def growth(client: Client, request: Callable[[], object]) -> dict[str, float]:
    before = scrape(client)
    request()
    after = scrape(client)
    return {name: value - before.get(name, 0) for name, value in after.items()}


def logged(caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    (record,) = (r for r in caplog.records if r.name == "app.requests" and r.levelno > 10)
    facts: dict[str, Any] = record.__dict__["facts"]
    return facts


def test_migration_is_counted_with_all_that_is_known_of_it(client: Client, old: bytes) -> None:
    grown = growth(client, lambda: client.post("/migrate", content=old))

    assert grown[sample("requests_total", "POST /migrate", "200")] == 1
    assert grown[sample("request_duration_seconds_count", "POST /migrate")] == 1
    assert grown[sample("runs_total", "migrate", "succeeded")] == 1
    assert grown["run_duration_seconds_count migrate"] == 1
    assert grown["queue_wait_seconds_count"] == 1
    assert grown["input_bytes_sum"] == len(old)
    assert grown["output_bytes_sum"] > len(old)
    assert grown[sample("migrations_run_total", "default", "0001_keep", "succeeded")] == 1
    assert 0 < grown[sample("migration_duration_seconds_sum", "default", "0001_keep")] < 60


def test_failed_migration_is_counted_beside_those_before_it(client: Client, old: bytes) -> None:
    grown = growth(client, lambda: client.post("/migrate?set=fails", content=old))

    assert grown[sample("requests_total", "POST /migrate", "422", "migration_failed")] == 1
    assert grown[sample("runs_total", "migrate", "failed", "migration_failed")] == 1
    assert grown[sample("migrations_run_total", "fails", "0001_keep", "succeeded")] == 1
    assert grown[sample("migrations_run_total", "fails", "0002_fail", "failed")] == 1


def test_what_there_is_now_is_looked_up(client: Client) -> None:
    found = scrape(client)

    assert found["queue_depth"] == found["runs_active"] == 0
    assert found["scratch_free_bytes"] > 0
    assert found["migrations_stale"] == 0
    sets = client.get("/version").json()["sets"]
    for name, digest in sets.items():
        assert found[sample("migration_set_info", name, digest)] == 1


def test_hostile_clients_make_no_new_series(client: Client, old: bytes) -> None:
    def attack(number: int) -> None:
        client.request(f"M{number}", f"/x{number}")
        client.post(f"/nowhere{number}")
        client.post(f"/migrate?set=s{number}", content=old)
        client.request("PUT", f"/migrate/{number}", content=b"x")

    attack(0)
    scrape(client)
    before = scrape(client)
    for number in range(1, 4):
        attack(number)

    assert scrape(client).keys() == before.keys()


def test_reading_that_fails_leaves_the_others() -> None:
    broken = Live("broken", "It cannot be read.", (), lambda: {(): 1 / 0})
    whole = Live("whole", "It can.", (), lambda: {(): 7})

    text, _ = Metrics([broken, whole]).expose("")

    assert b"migrate_ckpt_whole 7.0" in text
    assert b"migrate_ckpt_broken" not in text


def test_two_applications_count_apart(client: Client, tmp_path: Path) -> None:
    (tmp_path / "0001_a.py").write_text("def handle(ckpt):\n    return ckpt\n")
    other = create_app(Settings(migrations_folder=tmp_path))

    assert other.state.telemetry.metrics.registry is not client.app.state.telemetry.metrics.registry


def test_openmetrics_is_given_to_whoever_asks_for_it(client: Client) -> None:
    answer = client.get("/metrics", headers={"Accept": "application/openmetrics-text"})

    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


def test_request_has_one_line_with_all_that_is_known_of_it(
    client: Client, old: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")

    answer = client.post("/migrate?set=fails&policy=strict", content=old)

    line = logged(caplog)
    assert (
        line.items()
        >= {
            "method": "POST",
            "route": "/migrate",
            "path": "/migrate",
            "status": 422,
            "bytes_in": len(old),
            "bytes_out": len(answer.content),
            "error_type": "migration_failed",
            "detail": answer.json()["detail"],
            "action": "migrate",
            "outcome": "failed",
            "set": "fails",
            "ran": ["0001_keep"],
            "failed_migration": "0002_fail",
        }.items()
    )
    assert 0 <= line["queue_seconds"] <= line["run_seconds"] <= line["seconds"]
    json.dumps(line)


def test_query_and_authorization_are_not_logged(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")

    client.get("/nowhere?token=s3cr3t", headers={"Authorization": "Bearer s3cr3t"})

    assert logged(caplog)["route"] == "none"
    assert not [r for r in caplog.records if "s3cr3t" in str(r.__dict__) and r.name[:3] == "app"]


def test_probe_that_succeeds_is_logged_only_when_everything_is(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")

    client.get("/livez")

    (record,) = (r for r in caplog.records if r.name == "app.requests")
    assert record.levelno == logging.DEBUG


def test_unforeseen_failure_is_counted_and_logged(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    grown = growth(client, lambda: client.get("/livez/breaks"))

    assert grown[sample("requests_total", "none", "500", "internal")] == 1
    (record,) = (r for r in caplog.records if r.name == "app.requests")
    assert record.levelno == logging.ERROR
    assert record.__dict__["facts"]["error_type"] == "internal"


def test_client_that_leaves_in_the_middle_of_its_upload_is_499(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    messages = iter(
        [
            {"type": "http.request", "body": b"x" * 10, "more_body": True},
            {"type": "http.disconnect"},
        ]
    )

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        pass

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/migrate",
        "raw_path": b"/migrate",
        "query_string": b"",
        "headers": [(b"content-length", b"1000")],
        "root_path": "",
        "scheme": "http",
        "http_version": "1.1",
        "server": ("service", 80),
        "client": ("client", 1),
    }
    client.loop.run_until_complete(client.app(scope, receive, send))

    assert logged(caplog).items() >= {"status": 499, "bytes_in": 10}.items()

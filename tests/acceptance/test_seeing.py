"""What an operator sees of a real process: its metrics, its log, and the digests and headers of its answers."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pty
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.acceptance.conftest import (
    Service,
    answers,
    eventually,
    free_port,
    running_service,
    sleeping_run,
    write_sets,
)

pytestmark = pytest.mark.acceptance


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that this module alone talks to, so that its numbers are known."""
    folder = tmp_path_factory.mktemp("seen")
    write_sets(folder / "migrations")
    with running_service(
        folder,
        MIGRATE_CKPT_RUN_TIMEOUT_SECONDS="3",
        MIGRATE_CKPT_MAX_CONCURRENT_RUNS="1",
        MIGRATE_CKPT_MAX_QUEUED_RUNS="1",
    ) as service:
        yield service


Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(service: Service) -> Series:
    text = httpx.get(f"{service.url}/metrics").raise_for_status().text
    return {
        (sample.name.removeprefix("migrate_ckpt_"), frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(series: Series, name: str, **labels: str) -> float:
    """The sum over all series of this name that have these labels."""
    wanted = set(labels.items())
    return sum(value for (each, found), value in series.items() if each == name and wanted <= found)


def lines(service: Service) -> list[dict[str, Any]]:
    return [json.loads(line) for line in service.log.read_text().splitlines()]


def line_of(service: Service, request_id: str) -> dict[str, Any]:
    """The one line that tells of a request as a whole."""

    def found() -> list[dict[str, Any]]:
        ours = [line for line in lines(service) if line.get("request_id") == request_id]
        return [line for line in ours if line["logger"] == "app.requests"]

    assert eventually(found), f"no line of {request_id}"
    (line,) = found()
    return line


def test_every_run_is_counted_by_what_became_of_it(seen: Service, old: Path) -> None:
    before = scrape(seen)
    body = old.read_bytes()
    for set_name, times in (("default", 3), ("fails", 2), ("sleeps", 1), ("crashes", 1)):
        for _ in range(times):
            httpx.post(f"{seen.url}/migrate?set={set_name}", content=body, timeout=60)
    httpx.post(f"{seen.url}/migrate", content=b"no checkpoint")
    # A request is counted when its answer has gone.
    counted = total(before, "requests_total") + 8
    assert eventually(lambda: total(scrape(seen), "requests_total") >= counted)
    after = scrape(seen)

    def added(name: str, **labels: str) -> float:
        return total(after, name, **labels) - total(before, name, **labels)

    assert added("runs_total", action="migrate", outcome="succeeded") == 3
    for error_type, count in (
        ("migration_failed", 2),
        ("timeout", 1),
        ("crashed", 1),
        ("not_a_checkpoint", 1),
    ):
        assert added("runs_total", action="migrate", error_type=error_type) == count, error_type
    assert added("run_duration_seconds_count", action="migrate") == 8
    assert 3 < added("run_duration_seconds_sum", action="migrate") < 120
    assert added("requests_total", status="200", route="POST /migrate") == 3
    assert added("requests_total", status="504", route="POST /migrate") == 1


def test_what_goes_on_is_in_the_gauges(seen: Service, old: Path) -> None:
    with sleeping_run(seen, old):
        assert total(scrape(seen), "runs_active") == 1
        assert total(scrape(seen), "requests_admitted") == 1

    assert eventually(lambda: total(scrape(seen), "runs_active") == 0)
    assert total(scrape(seen), "scratch_free_bytes") > 2**20
    sets = httpx.get(f"{seen.url}/version").json()["sets"]
    for name, digest in sets.items():
        assert total(scrape(seen), "migration_set_info", set=name, digest=digest) == 1


def test_garbage_makes_no_new_series(seen: Service, old: Path) -> None:
    httpx.get(f"{seen.url}/nowhere")
    httpx.post(f"{seen.url}/migrate?set=nowhere", content=old.read_bytes())
    httpx.request("BREW", f"{seen.url}/migrate")
    before = len(scrape(seen))
    for number in range(50):
        garbage = uuid.uuid4().hex
        httpx.get(f"{seen.url}/{garbage}", headers={"X-Request-Id": garbage})
        httpx.post(f"{seen.url}/migrate?set={garbage}", content=old.read_bytes())
        httpx.request(f"BREW{number}", f"{seen.url}/migrate")

    assert len(scrape(seen)) == before


def test_log_has_a_line_for_a_request_with_all_that_became_of_it(seen: Service, old: Path) -> None:
    answer = httpx.post(
        f"{seen.url}/migrate?set=fails",
        content=old.read_bytes(),
        headers={"X-Request-Id": "deploy-7.training"},
    )

    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "deploy-7.training"
    line = line_of(seen, "deploy-7.training")
    assert (line["method"], line["route"], line["status"]) == ("POST", "/migrate", 422)
    assert (line["error_type"], line["failed_migration"]) == ("migration_failed", "0001_first")
    assert line["bytes_in"] == old.stat().st_size
    assert line["set"] == "fails"


def test_request_without_an_id_is_given_one(seen: Service, old: Path) -> None:
    answer = httpx.post(f"{seen.url}/inspect", content=old.read_bytes())

    assert line_of(seen, answer.headers["x-request-id"])["status"] == 200


@pytest.mark.parametrize("evil", ["a b", 'a"}{"', "x" * 500, "\x1b[31m", "ä"])
def test_id_that_could_break_a_log_is_replaced(seen: Service, evil: str) -> None:
    host, port = seen.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        head = (
            f"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Request-Id: {evil}\r\n\r\n"
        )
        connection.sendall(head.encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))

    if b" 400 " not in answer.splitlines()[0]:
        (given,) = [
            line for line in answer.decode().splitlines() if line.lower().startswith("x-request-id")
        ]
        assert evil not in given
    # Every line of the log is still one document.
    assert all(isinstance(line, dict) for line in lines(seen))


def test_log_at_a_terminal_is_for_people(tmp_path: Path, old: Path) -> None:
    write_sets(tmp_path / "migrations")
    (tmp_path / "scratch").mkdir()
    ours, theirs = pty.openpty()
    shown: list[bytes] = []
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "serve"],
        env={
            **os.environ,
            "PORT": str(port),
            "MIGRATE_CKPT_MIGRATIONS_FOLDER": str(tmp_path / "migrations"),
            "MIGRATE_CKPT_SCRATCH_FOLDER": str(tmp_path / "scratch"),
        },
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    reader = threading.Thread(target=_read_all, args=(ours, shown))
    reader.start()
    service = Service(process, f"http://127.0.0.1:{port}", tmp_path / "scratch", tmp_path / "log")
    try:
        assert eventually(lambda: answers(service) or process.poll(), seconds=60)
        answer = httpx.post(f"{service.url}/migrate", content=old.read_bytes())
    finally:
        process.terminate()
        process.wait(60)
        reader.join(60)
        os.close(ours)

    text = b"".join(shown).decode()
    (line,) = [line for line in text.splitlines() if answer.headers["x-request-id"] in line]
    assert "POST /migrate 200" in line
    assert not line.startswith("{")


def _read_all(terminal: int, into: list[bytes]) -> None:
    while True:
        try:
            block = os.read(terminal, 65536)
        except OSError:
            # The other end was closed: the process has ended.
            return
        into.append(block)


def digest_of(body: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


def test_answer_has_the_digest_that_is_wanted(seen: Service, old: Path) -> None:
    answer = httpx.post(
        f"{seen.url}/migrate", content=old.read_bytes(), headers={"Want-Repr-Digest": "sha-256=9"}
    )

    assert answer.status_code == 200
    assert answer.headers["repr-digest"] == digest_of(answer.content)


@pytest.mark.parametrize("field", ["Content-Digest", "Repr-Digest"])
def test_body_that_is_not_the_one_it_is_said_to_be_starts_no_run(
    seen: Service, old: Path, field: str
) -> None:
    body = old.read_bytes()
    before = total(scrape(seen), "runs_total")

    wrong = httpx.post(f"{seen.url}/migrate", content=body, headers={field: digest_of(b"other")})
    assert (wrong.status_code, wrong.json()["error_type"]) == (400, "digest_mismatch")
    assert total(scrape(seen), "runs_total") == before

    right = httpx.post(f"{seen.url}/migrate", content=body, headers={field: digest_of(body)})
    assert right.status_code == 200
    assert total(scrape(seen), "runs_total") == before + 1


@pytest.mark.parametrize("path", ["/readyz", "/nowhere", "/docs"])
def test_every_answer_tells_browsers_what_not_to_do(seen: Service, path: str) -> None:
    answer = httpx.get(seen.url + path, headers={"Origin": "https://elsewhere.example"})

    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "DENY"
    assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_no_other_site_is_let_in_by_a_preflight(seen: Service) -> None:
    answer = httpx.request(
        "OPTIONS",
        f"{seen.url}/migrate",
        headers={"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"},
    )

    assert answer.status_code == 405
    assert "access-control-allow-origin" not in answer.headers

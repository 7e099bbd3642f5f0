"""A real service tells a real collector of its requests, and takes no harm from one that is not there."""

from __future__ import annotations

import contextlib
import json
import secrets
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.acceptance.collector import Collector, attributes, running_collector
from tests.acceptance.conftest import (
    Service,
    eventually,
    free_port,
    running_service,
    sleeping_run,
    write_sets,
)

pytestmark = pytest.mark.acceptance

SECONDS = 60


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with running_collector() as collector:
        yield collector


@contextlib.contextmanager
def traced_service(folder: Path, **environment: str) -> Iterator[Service]:
    """A service that does one run at once, lets nobody wait, and ends a run after two seconds."""
    write_sets(folder / "migrations")
    with running_service(
        folder,
        MIGRATE_CKPT_MAX_CONCURRENT_RUNS="1",
        MIGRATE_CKPT_MAX_QUEUED_RUNS="0",
        MIGRATE_CKPT_RUN_TIMEOUT_SECONDS="2",
        MIGRATE_CKPT_LOG_FORMAT="json",
        **environment,
    ) as service:
        yield service


@pytest.fixture(scope="module")
def traced(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with traced_service(
        tmp_path_factory.mktemp("traced"),
        OTEL_SERVICE_NAME="checkpoints",
        **collector.environment,
    ) as service:
        yield service


def send(service: Service, old: Path, path: str, trace_id: str = "") -> httpx.Response:
    headers = {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"} if trace_id else {}
    headers["tracestate"] = "vendor=abc"
    return httpx.post(f"{service.url}{path}", content=old.read_bytes(), headers=headers, timeout=60)


def new_trace_id() -> str:
    return secrets.token_hex(16)


def collected(collector: Collector, trace_id: str) -> tuple[Span, list[Span]]:
    """The server's span of a trace, when it has come in, and those inside of it."""

    def server() -> list[Span]:
        kinds = [span for span in collector.trace(trace_id) if span.kind == Span.SPAN_KIND_SERVER]
        return kinds

    assert eventually(server, seconds=SECONDS), collector.posts
    (found,) = server()
    parts = [span for span in collector.trace(trace_id) if span != found]
    for part in parts:
        assert part.parent_span_id == found.span_id
        assert found.start_time_unix_nano <= part.start_time_unix_nano
        assert part.start_time_unix_nano <= part.end_time_unix_nano <= found.end_time_unix_nano
    return found, parts


def lines(service: Service, trace_id: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in service.log.read_text().splitlines()]
    return [line for line in found if line.get("trace_id") == trace_id]


def names(spans: list[Span]) -> list[str]:
    return [span.name for span in spans]


def test_migration_is_a_trace_that_its_client_began(
    traced: Service, collector: Collector, old: Path
) -> None:
    trace_id = new_trace_id()

    answer = send(traced, old, "/migrate", trace_id)

    assert answer.status_code == 200
    server, parts = collected(collector, trace_id)
    assert server.name == "POST /migrate"
    assert (server.parent_span_id.hex(), server.trace_state) == ("00f067aa0ba902b7", "vendor=abc")
    assert server.status.code == Status.STATUS_CODE_UNSET
    assert names(parts) == ["upload", "queue", "read", "migration", "write", "response"]
    assert attributes(parts[3]) == {"migrate_ckpt.migration": "0001_first"}
    assert (
        attributes(server).items()
        >= {
            "http.request.method": "POST",
            "http.route": "/migrate",
            "http.response.status_code": 200,
            "url.scheme": "http",
            "url.path": "/migrate",
            "migrate_ckpt.request_id": answer.headers["x-request-id"],
            "migrate_ckpt.set": "default",
            "migrate_ckpt.outcome": "succeeded",
        }.items()
    )
    assert collector.resources[0]["service.name"] == "checkpoints"
    (line,) = lines(traced, trace_id)
    assert (line["span_id"], line["status"]) == (server.span_id.hex(), 200)


def test_failed_migration_is_seen_where_it_failed(
    traced: Service, collector: Collector, old: Path
) -> None:
    trace_id = new_trace_id()

    assert send(traced, old, "/migrate?set=fails", trace_id).status_code == 422

    server, parts = collected(collector, trace_id)
    assert names(parts) == ["upload", "queue", "read", "migration", "response"]
    assert [part.status.code for part in parts].count(Status.STATUS_CODE_ERROR) == 1
    assert parts[3].status.code == server.status.code == Status.STATUS_CODE_ERROR
    assert attributes(parts[3])["error.type"] == "migration_failed"
    assert attributes(server)["error.type"] == "migration_failed"
    assert "0001_first" in server.status.message
    line = lines(traced, trace_id)[-1]
    assert (line["error_type"], line["failed_migration"]) == ("migration_failed", "0001_first")


def test_migration_that_took_too_long_is_named_although_its_run_was_killed(
    traced: Service, collector: Collector, old: Path
) -> None:
    trace_id = new_trace_id()

    assert send(traced, old, "/migrate?set=sleeps", trace_id).status_code == 504

    server, parts = collected(collector, trace_id)
    assert names(parts) == ["upload", "queue", "migration", "response"]
    assert attributes(parts[2]) == {
        "migrate_ckpt.migration": "0001_first",
        "error.type": "timeout",
    }
    assert attributes(server)["error.type"] == "timeout"
    assert parts[2].end_time_unix_nano - parts[2].start_time_unix_nano > 10**9


def test_request_that_finds_the_queue_full_is_a_trace_without_upload(
    traced: Service, collector: Collector, old: Path
) -> None:
    trace_id = new_trace_id()

    with sleeping_run(traced, old):
        assert send(traced, old, "/migrate", trace_id).status_code == 503

    server, parts = collected(collector, trace_id)
    assert names(parts) == ["response"]
    assert server.status.code == Status.STATUS_CODE_ERROR
    assert attributes(server)["error.type"] == "queue_full"
    assert attributes(server)["http.response.status_code"] == 503
    assert [line["error_type"] for line in lines(traced, trace_id)] == ["queue_full"]
    assert eventually(lambda: not traced.runs(), seconds=SECONDS)


def test_collector_that_is_away_harms_nobody_and_is_mentioned_seldom(
    tmp_path: Path, old: Path
) -> None:
    away = Collector(port=free_port())
    begun = time.monotonic()
    with traced_service(tmp_path, **away.environment) as service:
        for _ in range(5):
            assert send(service, old, "/migrate").status_code == 200

        def complaints() -> list[str]:
            found = [json.loads(line) for line in service.log.read_text().splitlines()]
            return [line["level"] for line in found if "opentelemetry" in line["logger"]]

        assert eventually(lambda: "error" in complaints(), seconds=SECONDS)
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(SECONDS) == 0
        minutes = 1 + int(time.monotonic() - begun) // 60
        assert complaints().count("error") <= minutes
        assert complaints().count("warning") <= minutes


def test_collector_that_hangs_holds_up_neither_requests_nor_the_end(
    tmp_path: Path, old: Path
) -> None:
    with running_collector() as collector:
        collector.answers.clear()
        with traced_service(tmp_path, **collector.environment) as service:
            assert send(service, old, "/migrate").status_code == 200
            assert eventually(lambda: collector.posts, seconds=SECONDS)
            assert send(service, old, "/migrate").status_code == 200

            service.process.send_signal(signal.SIGTERM)

            # The exporter's own patience with the one request that hangs is longer.
            assert service.process.wait(SECONDS) == 0
            assert "could not be handed over" in service.log.read_text()


def test_last_spans_come_in_when_the_service_stops(tmp_path: Path, old: Path) -> None:
    trace_id = new_trace_id()
    with running_collector() as collector:
        patient = {**collector.environment, "OTEL_BSP_SCHEDULE_DELAY": "600000"}
        with traced_service(tmp_path, **patient) as service:
            assert send(service, old, "/migrate", trace_id).status_code == 200

        server, parts = collected(collector, trace_id)

    assert server.name == "POST /migrate"
    assert len(parts) == 6


def test_trace_of_a_client_is_in_the_log_of_a_service_that_traces_nothing(
    tmp_path: Path, old: Path
) -> None:
    trace_id = new_trace_id()
    with traced_service(tmp_path, OTEL_TRACES_EXPORTER="none") as service:
        assert send(service, old, "/migrate?set=fails", trace_id).status_code == 422

    # All of the log is there when the service has ended; an answer may be sent before its line is written.
    found = lines(service, trace_id)
    assert "migration_failed" in [line.get("error_type") for line in found]

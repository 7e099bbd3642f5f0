"""Each request is a trace of spans, and the log names it."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from fastapi import FastAPI
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode, get_current_span
from starlette.datastructures import Headers

from app.logs import JsonFormatter
from app.main import create_app
from app.settings import Settings
from app.trace_parts import Part
from app.tracing import NO_TRACER, make_span, read_parent
from tests.app.conftest import Client

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT_ID = "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def client(start: Callable[[FastAPI], Client], tmp_path_factory: pytest.TempPathFactory) -> Client:
    migrations = tmp_path_factory.mktemp("migrations")
    (migrations / "0001_keep.py").write_text("def handle(ckpt):\n    return ckpt\n")
    (migrations / "fails").mkdir()
    (migrations / "fails" / "0001_keep.py").write_text("def handle(ckpt):\n    return ckpt\n")
    (migrations / "fails" / "0002_fail.py").write_text(
        "def handle(ckpt):\n    raise KeyError('\\x1b[2J\\ud800 mck_s3cr3t-s3cr3t')\n"
    )
    scratch = tmp_path_factory.mktemp("scratch")
    return start(create_app(Settings(migrations_folder=migrations, scratch_folder=scratch)))


@pytest.fixture(scope="module")
def old() -> bytes:
    file = io.BytesIO()
    torch.save({"a": torch.arange(100)}, file)
    return file.getvalue()


@pytest.fixture
def spans(client: Client) -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    client.app.state.telemetry.tracer = provider.get_tracer("test")
    yield exporter
    client.app.state.telemetry.tracer = NO_TRACER


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[list[dict[str, object]]]:
    """What the log says, as JSON."""
    said: list[dict[str, object]] = []

    class Said(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(json.loads(self.format(record)))

    handler = Said()
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("app")
    caplog.set_level("INFO", "app")
    logger.addHandler(handler)
    yield said
    logger.removeHandler(handler)


def tree(spans: InMemorySpanExporter) -> tuple[ReadableSpan, list[ReadableSpan]]:
    """The span of the one request there was, and those of its parts."""
    *parts, server = spans.get_finished_spans()
    assert server.context is not None
    for part in parts:
        assert part.parent is not None
        assert part.parent.span_id == server.context.span_id
        assert part.start_time is not None
        assert part.end_time is not None
        assert server.start_time is not None
        assert server.end_time is not None
        assert server.start_time <= part.start_time <= part.end_time <= server.end_time
    return server, parts


def test_migration_is_a_tree_of_spans(
    client: Client, old: bytes, spans: InMemorySpanExporter
) -> None:
    answer = client.post("/migrate?secret=no", content=old, headers={"X-Request-Id": "r1"})

    # An unknown parameter is refused, and its value is not told either.
    assert answer.status_code == 400
    server, parts = tree(spans)
    assert "secret" not in server.to_json()
    spans.clear()

    answer = client.post("/migrate", content=old, headers={"X-Request-Id": "r2"})

    server, parts = tree(spans)
    assert [part.name for part in parts] == [
        "upload",
        "queue",
        "read",
        "migration",
        "write",
        "response",
    ]
    assert all(part.kind is SpanKind.INTERNAL for part in parts)
    assert dict(parts[3].attributes or {}) == {"migrate_ckpt.migration": "0001_keep"}
    assert (server.name, server.kind) == ("POST /migrate", SpanKind.SERVER)
    assert server.parent is None
    assert server.status.status_code is StatusCode.UNSET
    attributes = dict(server.attributes or {})
    assert (
        attributes.pop("migrate_ckpt.set_digest")
        == client.get("/version").json()["sets"]["default"]
    )
    assert attributes.pop("migrate_ckpt.peak_memory_bytes") >= 0  # type: ignore[operator]
    assert attributes == {
        "http.request.method": "POST",
        "http.route": "/migrate",
        "http.request.body.size": len(old),
        "http.response.status_code": 200,
        "http.response.body.size": len(answer.content),
        "network.protocol.version": "1.1",
        "url.path": "/migrate",
        "url.scheme": "http",
        "migrate_ckpt.request_id": "r2",
        "migrate_ckpt.action": "migrate",
        "migrate_ckpt.outcome": "succeeded",
        "migrate_ckpt.set": "default",
        "migrate_ckpt.input_bytes": len(old),
        "migrate_ckpt.output_bytes": len(answer.content),
    }


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("/plan", ["upload", "queue", "read", "response"]),
        ("/inspect", ["upload", "queue", "read", "response"]),
    ],
)
def test_what_only_reads_is_traced_as_well(
    client: Client, old: bytes, spans: InMemorySpanExporter, path: str, names: list[str]
) -> None:
    assert client.post(path, content=old).status_code == 200

    server, parts = tree(spans)
    assert server.name == f"POST {path}"
    assert [part.name for part in parts] == names


def test_failed_migration_is_an_error_of_its_span_and_of_the_request(
    client: Client, old: bytes, spans: InMemorySpanExporter
) -> None:
    client.post("/migrate?set=fails", content=old)

    server, parts = tree(spans)
    assert [part.name for part in parts] == [
        "upload",
        "queue",
        "read",
        "migration",
        "migration",
        "response",
    ]
    failed = parts[4]
    assert failed.attributes == {
        "migrate_ckpt.migration": "0002_fail",
        "error.type": "migration_failed",
    }
    assert [part for part in parts if part.status.status_code is StatusCode.ERROR] == [failed]
    assert server.status.status_code is StatusCode.ERROR
    assert (server.attributes or {})["error.type"] == "migration_failed"
    assert "0002_fail" in (server.status.description or "")
    # What a collector could not take, or nobody should see.
    for evil in ("\x1b", "\ud800", "s3cr3t"):
        assert evil not in (server.status.description or "")


def test_file_that_cannot_be_read_is_an_error_of_its_reading(
    client: Client, spans: InMemorySpanExporter
) -> None:
    client.post("/migrate", content=b"no checkpoint")

    server, parts = tree(spans)
    assert [(part.name, (part.attributes or {}).get("error.type")) for part in parts] == [
        ("upload", None),
        ("queue", None),
        ("read", "not_a_checkpoint"),
        ("response", None),
    ]
    assert server.status.status_code is StatusCode.ERROR


def test_refusal_is_the_fault_of_the_client_and_no_error_of_the_span(
    client: Client, spans: InMemorySpanExporter
) -> None:
    client.post("/migrate?set=none", content=b"x")

    server, parts = tree(spans)
    assert [part.name for part in parts] == ["response"]
    assert (server.attributes or {})["error.type"] == "unknown_set"
    assert server.status.status_code is StatusCode.UNSET


def test_nothing_that_a_client_makes_up_becomes_the_name_of_a_span(
    client: Client, spans: InMemorySpanExporter
) -> None:
    client.request("BREW", "/migrate/%ff%1b")
    client.request("PUT", "/migrate/%00old.ckpt", content=b"")
    client.get("/nowhere/at/all")

    made = spans.get_finished_spans()
    assert {span.name for span in made} == {
        "HTTP",
        "PUT /migrate/{filename}",
        "GET",
        "upload",
        "response",
    }
    for span in made:
        assert str((span.attributes or {}).get("url.path", "")).isprintable()


def test_migration_whose_name_is_no_text_can_be_sent(
    client: Client, spans: InMemorySpanExporter
) -> None:
    part = Part("migration", 1, 2, migration="0001_\udc80")

    make_span(client.app.state.telemetry.tracer, part, Context())

    (span,) = spans.get_finished_spans()
    assert encode_spans([span]).SerializeToString()


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics"])
def test_probe_is_not_traced(client: Client, spans: InMemorySpanExporter, path: str) -> None:
    assert client.get(path, headers={"traceparent": TRACEPARENT}).status_code == 200

    assert spans.get_finished_spans() == ()


def test_trace_of_the_client_is_continued_and_named_in_the_log(
    client: Client, old: bytes, spans: InMemorySpanExporter, lines: list[dict[str, object]]
) -> None:
    headers = {"traceparent": TRACEPARENT, "tracestate": "vendor=abc"}

    client.post("/migrate", content=old, headers=headers)

    server, parts = tree(spans)
    assert server.context is not None
    assert server.parent is not None
    assert f"{server.context.trace_id:032x}" == TRACE_ID
    assert f"{server.parent.span_id:016x}" == PARENT_ID
    assert server.context.trace_state.to_header() == "vendor=abc"
    assert {part.context and part.context.trace_id for part in parts} == {server.context.trace_id}
    line = lines[-1]
    assert (line["trace_id"], line["span_id"]) == (TRACE_ID, f"{server.context.span_id:016x}")


def test_trace_of_the_client_is_named_in_the_log_where_no_span_is_made(
    client: Client, old: bytes, lines: list[dict[str, object]]
) -> None:
    client.post("/migrate?set=fails", content=old, headers={"traceparent": TRACEPARENT})

    assert lines
    assert {line["trace_id"] for line in lines} == {TRACE_ID}
    # There is no span of ours that it could be.
    assert not any("span_id" in line for line in lines)


def test_log_names_no_trace_where_there_is_none(
    client: Client, lines: list[dict[str, object]]
) -> None:
    client.get("/nowhere")

    assert "trace_id" not in lines[-1]


def test_request_that_is_not_sampled_makes_no_spans_and_is_named_all_the_same(
    client: Client, spans: InMemorySpanExporter, lines: list[dict[str, object]]
) -> None:
    provider = TracerProvider(sampler=ALWAYS_OFF)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    client.app.state.telemetry.tracer = provider.get_tracer("test")

    client.get("/nowhere")

    assert spans.get_finished_spans() == ()
    assert len(str(lines[-1]["trace_id"])) == 32
    assert len(str(lines[-1]["span_id"])) == 16


@pytest.mark.parametrize(
    "values",
    [
        [],
        [""],
        ["x" * 1000],
        [TRACEPARENT, TRACEPARENT],
        [f"00-{'0' * 32}-{PARENT_ID}-01"],
        [f"00-{TRACE_ID}-{'0' * 16}-01"],
        [f"ff-{TRACE_ID}-{PARENT_ID}-01"],
        [f"{TRACEPARENT}-more"],
        [TRACEPARENT.upper()],
    ],
    ids=["none", "empty", "long", "two", "no trace", "no span", "ff", "more", "upper case"],
)
def test_traceparent_that_is_none_is_passed_over(values: list[str]) -> None:
    raw = [(b"traceparent", value.encode()) for value in values]

    assert not get_current_span(read_parent(Headers(raw=raw))).get_span_context().is_valid


def test_parent_is_not_looked_for_anywhere_else() -> None:
    assert read_parent(Headers(raw=[])) == Context()


def test_sdk_is_not_loaded_where_nobody_asks_for_spans(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from app.main import create_app\n"
        "from app.settings import Settings\n"
        f"create_app(Settings(migrations_folder={str(tmp_path)!r}))\n"
        "loaded = [name for name in sys.modules if name.startswith('opentelemetry.')]\n"
        "print([name for name in loaded if '.sdk' in name or '.exporter' in name])\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env={}, capture_output=True, text=True
    )

    assert (done.stdout, done.stderr) == ("[]\n", "")

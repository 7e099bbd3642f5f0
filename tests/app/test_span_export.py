from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import threading
import time
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SpanExporter, SpanExportResult
from opentelemetry.trace import Tracer

from app import span_export
from app.settings import SettingsError
from app.span_export import exporting, find_exporters
from app.tracing import NO_TRACER

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
EXPORTER = "OTEL_TRACES_EXPORTER"
PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"
COLLECTOR = "http://127.0.0.1:4318"


class Kept(SpanExporter):
    """Keeps what it is given."""

    spans: ClassVar[list[ReadableSpan]] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans.extend(spans)
        return SpanExportResult.SUCCESS


class Stuck(SpanExporter):
    """A collector that takes what it is given, and says nothing more."""

    over = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.over.wait(60)
        return SpanExportResult.FAILURE


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment in which no variable asks for anything yet."""
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    Kept.spans.clear()
    return monkeypatch


def ask_for(environment: pytest.MonkeyPatch, asked: dict[str, str]) -> None:
    for name, value in asked.items():
        environment.setenv(name, value)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, []),
        ({EXPORTER: "", ENDPOINT: " "}, []),
        ({EXPORTER: "none", ENDPOINT: COLLECTOR}, []),
        ({"OTEL_SDK_DISABLED": "TRUE", ENDPOINT: COLLECTOR}, []),
        ({"OTEL_SDK_DISABLED": "true", EXPORTER: "zipkin"}, []),
        ({"OTEL_SDK_DISABLED": "false", ENDPOINT: COLLECTOR}, [OTLPSpanExporter]),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "a=b"}, []),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": COLLECTOR}, []),
        ({ENDPOINT: COLLECTOR}, [OTLPSpanExporter]),
        ({TRACES_ENDPOINT: f"{COLLECTOR}/v1/traces"}, [OTLPSpanExporter]),
        ({EXPORTER: "otlp"}, [OTLPSpanExporter]),
        ({EXPORTER: "otlp", PROTOCOL: "http/protobuf"}, [OTLPSpanExporter]),
        ({EXPORTER: "otlp, console"}, [OTLPSpanExporter, ConsoleSpanExporter]),
    ],
    ids=str,
)
def test_exporters_are_those_that_are_asked_for(
    environment: pytest.MonkeyPatch, asked: dict[str, str], expected: list[type]
) -> None:
    ask_for(environment, asked)

    assert list(find_exporters()) == expected


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({EXPORTER: "zipkin"}, ["OTEL_TRACES_EXPORTER", "zipkin", "[telemetry]"]),
        ({ENDPOINT: COLLECTOR, PROTOCOL: "grpc"}, [ENDPOINT, "otlp_proto_grpc", "http/protobuf"]),
        ({ENDPOINT: COLLECTOR, PROTOCOL: "http/json"}, [f"{PROTOCOL}=http/json", "http/protobuf"]),
        ({ENDPOINT: "localhost:4318"}, [ENDPOINT, "http://"]),
        ({TRACES_ENDPOINT: "http://[::1"}, [TRACES_ENDPOINT, "http://"]),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_the_name_of_its_variable(
    environment: pytest.MonkeyPatch, asked: dict[str, str], said: list[str]
) -> None:
    ask_for(environment, asked)

    with pytest.raises(SettingsError) as caught:
        find_exporters()

    assert [text for text in said if text not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("variable", "value"),
    [("OTEL_BSP_SCHEDULE_DELAY", "0"), ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "-1")],
)
def test_value_that_the_sdk_refuses_is_refused_at_the_start(
    environment: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    ask_for(environment, {EXPORTER: "console", variable: value})

    with pytest.raises(SettingsError, match="OTEL_"):
        find_exporters()


@pytest.mark.parametrize(
    ("variable", "value"), [(ENDPOINT, COLLECTOR), (TRACES_ENDPOINT, COLLECTOR), (EXPORTER, "otlp")]
)
def test_missing_extra_is_refused_with_what_to_install(
    environment: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    environment.setattr(importlib.util, "find_spec", lambda name: None)
    environment.setenv(variable, value)

    with pytest.raises(SettingsError) as caught:
        find_exporters()

    assert str(caught.value).startswith(variable)
    assert "pip install '.[telemetry]'" in str(caught.value)


def test_missing_extra_is_missed_by_nobody_who_asks_for_no_spans(
    environment: pytest.MonkeyPatch,
) -> None:
    environment.setattr(importlib.util, "find_spec", lambda name: None)

    assert find_exporters() == ()


async def make_one_span(exporters: Sequence[type[SpanExporter]]) -> Tracer:
    async with exporting(exporters) as tracer:
        tracer.start_span("one").end()
    return tracer


def resource() -> dict[str, Any]:
    (span,) = Kept.spans
    return dict(span.resource.attributes)


def test_without_exporters_there_is_no_tracer_to_speak_of() -> None:
    assert asyncio.run(make_one_span(())) is NO_TRACER


def test_last_spans_are_handed_over_when_the_service_stops() -> None:
    asyncio.run(make_one_span([Kept]))

    assert [span.name for span in Kept.spans] == ["one"]
    assert resource()["service.name"] == "migrate-ckpt"


def test_name_of_the_service_is_what_the_variables_say(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("OTEL_SERVICE_NAME", "checkpoints")
    environment.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.version=9,region=north")

    asyncio.run(make_one_span([Kept]))

    found = resource()
    assert (found["service.name"], found["service.version"]) == ("checkpoints", "9")
    assert found["region"] == "north"


def test_sampler_is_the_one_of_the_variable(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("OTEL_TRACES_SAMPLER", "always_off")

    asyncio.run(make_one_span([Kept]))

    assert Kept.spans == []


def test_collector_that_says_nothing_is_not_waited_for(
    environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    environment.setattr(span_export, "FLUSH_SECONDS", 0.2)
    begun = time.monotonic()
    try:
        asyncio.run(make_one_span([Stuck]))
        seconds = time.monotonic() - begun
    finally:
        Stuck.over.set()

    # Where it were waited for, it would be a minute.
    assert seconds < 30
    assert [r.levelno for r in caplog.records if r.name == "app.span_export"][-1] == logging.WARNING

"""Hands spans to a collector, where the standard OTEL_ variables ask for that; else no SDK is even loaded."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import threading
from collections.abc import AsyncIterator, Sequence
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import urlsplit

from opentelemetry.trace import Tracer

import migrate_ckpt
from app.settings import SettingsError
from app.tracing import NO_TRACER

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

    Exporters: TypeAlias = Sequence[type[SpanExporter]]

logger = logging.getLogger(__name__)

# What whoever stops the service has to wait for the last spans, where nobody takes them.
FLUSH_SECONDS = 2.0

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
# As the exporters call themselves among the entry points of their packages.
_OTLP = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}


def find_exporters() -> Exporters:
    """Return what is to take the spans; nothing where no variable of the environment asks for them.

    Raises:
        SettingsError: they are asked for, and what is asked for is not installed or cannot be.
    """
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ()
    variable, names = _asked_for()
    if not names:
        return ()
    if importlib.util.find_spec("opentelemetry.sdk") is None:
        raise SettingsError(
            f"{variable} asks for spans, and what sends them is not installed: install the extra "
            "[telemetry], with pip install '.[telemetry]' in the clone, leave the variable out, or set "
            "OTEL_SDK_DISABLED=true."
        )
    exporters = [_load(variable, _entry_point(name)) for name in names]
    try:
        _make_provider(exporters).shutdown()
    except ValueError as error:
        # The SDK names what is wrong in its own words, and not the variable.
        message = f"A variable OTEL_… that says how spans are sent cannot be used: {error}"
        raise SettingsError(message) from error
    return exporters


def _asked_for() -> tuple[str, list[str]]:
    """Return the variable that asks for spans, and the exporters that it names."""
    variable = "OTEL_TRACES_EXPORTER"
    listed = [name.strip() for name in os.environ.get(variable, "").split(",")]
    if any(listed):
        return variable, [name for name in listed if name not in ("", "none")]
    variable = _first_set(ENDPOINTS)
    return variable, ["otlp"] if variable else []


def _first_set(variables: Sequence[str]) -> str:
    return next((name for name in variables if os.environ.get(name, "").strip()), "")


def _entry_point(name: str) -> str:
    """Return how an exporter calls itself; of otlp, that depends on the protocol."""
    if name == "otlp":
        variable = _first_set(PROTOCOLS)
        protocol = os.environ[variable].strip() if variable else "http/protobuf"
        if protocol not in _OTLP:
            raise SettingsError(
                f"{variable}={protocol} cannot be used: there is {' and '.join(_OTLP)}."
            )
        name = _OTLP[protocol]
    if name == "otlp_proto_http":
        _check_endpoint()
    return name


def _check_endpoint() -> None:
    variable = _first_set(ENDPOINTS)
    if not variable:
        return
    try:
        address = urlsplit(os.environ[variable])
        is_one = address.scheme in ("http", "https") and bool(address.hostname)
    except ValueError:
        is_one = False
    if not is_one:
        raise SettingsError(f"{variable} cannot be used: it is no http:// or https:// address.")


def _load(variable: str, name: str) -> type[SpanExporter]:
    for found in entry_points(group="opentelemetry_traces_exporter", name=name):
        exporter: type[SpanExporter] = found.load()
        return exporter
    raise SettingsError(
        f"{variable} asks for spans by way of {name}, and that is not installed. The extra [telemetry] "
        "has otlp over http/protobuf, and console."
    )


@contextlib.asynccontextmanager
async def exporting(exporters: Exporters) -> AsyncIterator[Tracer]:
    """Give out a tracer whose spans go to the exporters; the last of them do when the block is left."""
    if not exporters:
        yield NO_TRACER
        return
    provider = _make_provider(exporters)
    names = ", ".join(exporter.__name__ for exporter in exporters)
    logger.info("Each request is traced: its spans go to %s", names)
    try:
        yield provider.get_tracer("migrate_ckpt", migrate_ckpt.__version__)
    finally:
        await asyncio.to_thread(_shut_down, provider)


def _make_provider(exporters: Exporters) -> TracerProvider:
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    ours = {"service.name": "migrate-ckpt", "service.version": migrate_ckpt.__version__}
    # What `create` is given goes before what it finds in the variables: so it is given that as well.
    resource = Resource.create(ours | dict(OTELResourceDetector().detect().attributes))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    for exporter in exporters:
        provider.add_span_processor(BatchSpanProcessor(exporter()))
    return provider


def _shut_down(provider: TracerProvider) -> None:
    """Have the last spans handed over, and wait for that no longer than a while."""
    # Nobody waits for a daemon: a collector that takes a connection and says nothing would hold the process up.
    flushing = threading.Thread(target=provider.shutdown, name="last-spans", daemon=True)
    flushing.start()
    flushing.join(FLUSH_SECONDS)
    if flushing.is_alive():
        logger.warning("The last spans could not be handed over in %g seconds", FLUSH_SECONDS)

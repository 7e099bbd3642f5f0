"""Sees each request and each run to its end, and tells the metrics, the log and the trace what became of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from starlette.datastructures import Headers

from app.access import find_route
from app.logs import request_context
from app.metrics import Metrics
from app.request_facts import (
    CLIENT_GONE,
    MAX_DETAIL_CHARACTERS,
    MAX_PATH_CHARACTERS,
    PROBES,
    RequestFacts,
)
from app.run_facts import RunFacts, error_type_of
from app.tracing import NO_TRACER, RequestTrace
from migrate_ckpt import MigrationSet

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

# A line for each request, whatever the logger of this module is set to.
requests_logger = logging.getLogger("app.requests")


class Telemetry:
    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self.tracer = NO_TRACER

    @contextlib.contextmanager
    def run(
        self,
        action: Literal["migrate", "plan", "inspect"],
        input_bytes: int,
        migration_set: MigrationSet | None,
    ) -> Iterator[RunFacts]:
        """Give out the facts of a run to fill in, and tell of them when the block is left."""
        run = RunFacts(action, input_bytes, migration_set)
        try:
            yield run
        except BaseException as error:
            run.end(error)
            raise
        else:
            run.end()
        finally:
            self.metrics.observe_run(run)

    def end_request(self, facts: RequestFacts) -> None:
        """Tell of a request that is answered."""
        facts.ended = time.monotonic()
        self.metrics.observe_request(facts)
        level = _level(facts)
        if requests_logger.isEnabledFor(level):
            message = f"{facts.method} {facts.route.rpartition(' ')[2]} {facts.status}"
            requests_logger.log(level, message, extra={"facts": _logged(facts)})


class TelemetryMiddleware:
    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self.app = app
        self.telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        facts = RequestFacts(
            scope["method"], scope["path"], find_route(scope["method"], scope["path"]) or "none"
        )
        scope["state"]["facts"] = facts
        trace = RequestTrace.begin(self.telemetry.tracer, facts, scope)
        # Never set back: what the server logs of this request after us belongs to it as well.
        request_context.set({"request_id": scope["state"]["request_id"], **trace.ids})
        exchange = _Exchange(facts, receive, send)
        try:
            await self.app(scope, exchange.take, exchange.give)
        except BaseException as error:
            exchange.fail(error)
            raise
        finally:
            facts.error = scope["state"].get("error", facts.error)
            exchange.end()
            self.telemetry.end_request(facts)
            trace.end(facts)


class _Exchange:
    """Counts what comes in and what goes out."""

    def __init__(self, facts: RequestFacts, receive: Receive, send: Send) -> None:
        self._facts = facts
        self._receive = receive
        self._send = send
        self._declared_bytes: int | None = None

    async def take(self) -> Message:
        message = await self._receive()
        self._facts.received_bytes += len(message.get("body", b""))
        return message

    async def give(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._facts.answered = time.monotonic()
            self._facts.status = message["status"]
            length = Headers(raw=message["headers"]).get("content-length")
            self._declared_bytes = None if length is None else int(length)
        else:
            self._facts.sent_bytes += len(message.get("body", b""))
        await self._send(message)

    def fail(self, error: BaseException) -> None:
        """Note what ended the request without a word of the application's own."""
        if self._facts.status is None:
            is_gone = isinstance(error, asyncio.CancelledError)
            self._facts.status = CLIENT_GONE if is_gone else 500
            self._facts.error = {
                "error_type": error_type_of(error),
                "message": type(error).__name__,
            }

    def end(self) -> None:
        """Note whether the client has had the whole answer."""
        facts = self._facts
        is_partial = self._declared_bytes is not None and facts.sent_bytes < self._declared_bytes
        if facts.status is None or (is_partial and facts.method != "HEAD"):
            facts.status = CLIENT_GONE


def _level(facts: RequestFacts) -> int:
    status = facts.status or 500
    if status >= 500:
        return logging.ERROR if status == 500 else logging.WARNING
    return logging.DEBUG if facts.route in PROBES and status < 400 else logging.INFO


def _logged(facts: RequestFacts) -> dict[str, Any]:
    logged: dict[str, Any] = {
        "method": facts.method[:16],
        "route": facts.route.rpartition(" ")[2],
        "path": facts.path[:MAX_PATH_CHARACTERS],
        "status": facts.status,
        "seconds": round(facts.seconds, 6),
        "bytes_in": facts.received_bytes,
        "bytes_out": facts.sent_bytes,
    }
    if facts.error is not None:
        logged["error_type"] = facts.error["error_type"]
        logged["detail"] = facts.error["message"][:MAX_DETAIL_CHARACTERS]
    if facts.run is not None:
        logged |= _logged_run(facts.run)
    return logged


def _logged_run(run: RunFacts) -> dict[str, Any]:
    logged: dict[str, Any] = {
        "action": run.action,
        "outcome": run.outcome,
        "queue_seconds": round(run.queue_seconds, 6),
        "peak_memory_bytes": run.peak_bytes,
    }
    if run.seconds is not None:
        logged["run_seconds"] = round(run.seconds, 6)
    if run.migration_set is not None:
        logged["set"] = run.migration_set.name
        failed = run.failed_migration
        logged["ran"] = [timing.name for timing in run.migrations if timing.name != failed]
        if failed is not None:
            logged["failed_migration"] = failed
    return logged

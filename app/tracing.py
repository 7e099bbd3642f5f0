"""Each request as a trace: the client's trace context is continued, and the request and its parts become spans.

Without a tracer nothing is made but the ids for the log, of the trace that the client named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opentelemetry.context import Context
from opentelemetry.trace import (
    NoOpTracer,
    Span,
    SpanKind,
    StatusCode,
    Tracer,
    format_span_id,
    format_trace_id,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers

from app.logs import clean
from app.request_facts import (
    CLIENT_GONE,
    MAX_DETAIL_CHARACTERS,
    MAX_PATH_CHARACTERS,
    PROBES,
    RequestFacts,
)
from app.trace_parts import Part, WallClock, request_parts

if TYPE_CHECKING:
    from starlette.types import Scope

NO_TRACER: Tracer = NoOpTracer()

_PROPAGATOR = TraceContextTextMapPropagator()

# Those of the semantic conventions; clients may make up others.
_METHODS = frozenset(
    ["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"]
)


@dataclass(frozen=True, slots=True)
class RequestTrace:
    """The span of one request, which has begun."""

    tracer: Tracer
    span: Span
    clock: WallClock

    @classmethod
    def begin(cls, tracer: Tracer, facts: RequestFacts, scope: Scope) -> RequestTrace:
        """Begin the span of a request; of a probe there is none."""
        if facts.route in PROBES:
            tracer = NO_TRACER
        clock = WallClock.now()
        method = facts.method if facts.method in _METHODS else "_OTHER"
        route = facts.route.rpartition(" ")[2]
        attributes = {
            "http.request.method": method,
            "url.path": clean(facts.path[:MAX_PATH_CHARACTERS]),
            "url.scheme": scope["scheme"],
            "network.protocol.version": scope["http_version"],
            "migrate_ckpt.request_id": scope["state"]["request_id"],
        }
        name = "HTTP" if method == "_OTHER" else method
        if route != "none":
            attributes["http.route"] = route
            name = f"{name} {route}"
        span = tracer.start_span(
            name,
            context=read_parent(Headers(scope=scope)),
            kind=SpanKind.SERVER,
            attributes=attributes,
            start_time=clock.at(facts.begun),
        )
        return cls(tracer, span, clock)

    @property
    def ids(self) -> dict[str, str]:
        """What the log says of the trace: its id, and that of the span where it is one of ours."""
        context = self.span.get_span_context()
        if not context.is_valid:
            return {}
        ids = {"trace_id": format_trace_id(context.trace_id)}
        return ids if context.is_remote else ids | {"span_id": format_span_id(context.span_id)}

    def end(self, facts: RequestFacts) -> None:
        """Make the spans of the parts of a request that has ended, and end its own."""
        if not self.span.is_recording():
            return
        assert facts.ended is not None
        self.span.set_attributes(_attributes(facts))
        if _is_failure(facts):
            message = "" if facts.error is None else facts.error["message"]
            self.span.set_status(StatusCode.ERROR, clean(message[:MAX_DETAIL_CHARACTERS]))
        inside = set_span_in_context(self.span, Context())
        for part in request_parts(facts, self.clock):
            make_span(self.tracer, part, inside)
        self.span.end(self.clock.at(facts.ended))


def make_span(tracer: Tracer, part: Part, inside: Context) -> None:
    """Make the span of a part that is over."""
    span = tracer.start_span(part.name, context=inside, start_time=part.begun_ns)
    if part.migration is not None:
        # A file may have a name that is no text, and one that cannot be encoded would take its batch with it.
        span.set_attribute("migrate_ckpt.migration", clean(part.migration))
    if part.error_type:
        span.set_attribute("error.type", part.error_type)
        span.set_status(StatusCode.ERROR)
    span.end(part.ended_ns)


def read_parent(headers: Headers) -> Context:
    """Return the trace context that a client has sent (W3C), or an empty one."""
    if len(headers.getlist("traceparent")) != 1:
        return Context()
    carrier = {name: headers.getlist(name) for name in ("traceparent", "tracestate")}
    return _PROPAGATOR.extract(carrier, Context())


def _is_failure(facts: RequestFacts) -> bool:
    """Whether the service is to blame, or what it runs; a request that it refuses is its client's fault."""
    has_failed = facts.run is not None and facts.run.outcome == "failed"
    return has_failed or (facts.status or 500) >= 500


def _attributes(facts: RequestFacts) -> Mapping[str, str | int]:
    found: dict[str, str | int] = {
        "http.response.status_code": facts.status or 500,
        "http.request.body.size": facts.received_bytes,
        "http.response.body.size": facts.sent_bytes,
    }
    if error_type := facts.error_type or ("cancelled" if facts.status == CLIENT_GONE else ""):
        found["error.type"] = error_type
    run = facts.run
    if run is None:
        return found
    found |= {
        "migrate_ckpt.action": run.action,
        "migrate_ckpt.outcome": run.outcome,
        "migrate_ckpt.input_bytes": run.input_bytes,
        "migrate_ckpt.peak_memory_bytes": run.peak_bytes,
    }
    if run.migration_set is not None:
        found["migrate_ckpt.set"] = run.migration_set.name
        found["migrate_ckpt.set_digest"] = run.migration_set.digest
    if run.output_bytes is not None:
        found["migrate_ckpt.output_bytes"] = run.output_bytes
    return found

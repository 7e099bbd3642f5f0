"""GET /metrics: the numbers for Prometheus."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from app.metrics import Metrics
from app.openapi import PROBLEMS

router = APIRouter()

_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The metrics, as text.",
        "content": {
            "text/plain": {"schema": {"type": "string"}},
            "application/openmetrics-text": {"schema": {"type": "string"}},
        },
    },
    **PROBLEMS,
}


@router.get(
    "/metrics",
    response_class=Response,
    responses=_RESPONSES,
    summary="Show the metrics, for Prometheus",
)
def metrics(request: Request) -> Response:
    found: Metrics = request.app.state.telemetry.metrics
    content, media_type = found.expose(request.headers.get("accept", ""))
    return Response(content, media_type=media_type)

"""GET /metrics: the numbers for Prometheus."""

from __future__ import annotations

import contextlib
from typing import Any

from fastapi import APIRouter, Request, Response

from app.errors import ServiceError
from app.jobs.office import JobOffice
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
async def metrics(request: Request) -> Response:
    jobs: JobOffice | None = request.app.state.jobs
    if jobs is not None:
        # Where their database does not answer, the rest is still to be seen.
        with contextlib.suppress(ServiceError):
            await jobs.count_waiting()
    found: Metrics = request.app.state.telemetry.metrics
    content, media_type = found.expose(request.headers.get("accept", ""))
    return Response(content, media_type=media_type)

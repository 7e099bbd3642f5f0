"""GET /livez, /readyz and /version: for probes, and for people who ask what is running."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request

from app.errors import ServiceError
from app.fingerprint import installed_versions
from app.openapi import PROBLEMS
from app.readiness import NEEDED, OK, check
from app.sets import MigrationSets

router = APIRouter()


@router.get("/livez", summary="Say that the process answers")
async def livez() -> dict[str, str]:
    return {"status": "alive"}


@router.get(
    "/readyz",
    responses=PROBLEMS,
    summary="Say whether checkpoints are taken; with ?verbose, each check and each layer of the sandbox",
)
async def readyz(request: Request, verbose: str | None = None) -> dict[str, Any]:
    checks = await check(request.app.state)
    wrong = [what for name, what in checks.items() if what != OK and name in NEEDED]
    if wrong:
        raise ServiceError("not_ready", " ".join(wrong), retryable=True, checks=checks)
    if verbose is None:
        return {"status": "ready"}
    layers = {layer.name: str(layer) for layer in request.app.state.sandbox.layers}
    return {"status": "ready", "checks": checks, "layers": layers}


@router.get("/version", responses=PROBLEMS, summary="Say what is running")
async def version(request: Request) -> dict[str, Any]:
    sets: MigrationSets = request.app.state.sets
    return {**asdict(installed_versions()), "sets": sets.current.digests()}

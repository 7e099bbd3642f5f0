"""GET /livez, /readyz and /version: for probes, and for people who ask what is running."""

from __future__ import annotations

from fastapi import APIRouter, Request

from app.documents import Liveness, Readiness, Version
from app.errors import ServiceError
from app.fingerprint import installed_versions
from app.jobs.opening import describe_replicas
from app.openapi import answers
from app.readiness import NEEDED, OK, check
from app.sets import MigrationSets

router = APIRouter()


@router.get("/livez", summary="Say that the process answers")
async def livez() -> Liveness:
    return {"status": "alive"}


@router.get(
    "/readyz",
    responses=answers(Readiness, "Checkpoints are taken."),
    # Of the members that may be left out none is there as null.
    response_model_exclude_unset=True,
    summary="Say whether checkpoints are taken; with ?verbose, each check and each layer of the sandbox",
)
async def readyz(request: Request, verbose: str | None = None) -> Readiness:
    checks = await check(request.app.state)
    wrong = [what for name, what in checks.items() if what != OK and name in NEEDED]
    if wrong:
        raise ServiceError("not_ready", " ".join(wrong), retryable=True, checks=checks)
    if verbose is None:
        return {"status": "ready"}
    layers = {layer.name: str(layer) for layer in request.app.state.sandbox.layers}
    replicas = describe_replicas(request.app.state.settings)
    return {"status": "ready", "checks": checks, "layers": layers, "replicas": replicas}


@router.get(
    "/version", responses=answers(Version, "The versions in use."), summary="Say what is running"
)
async def version(request: Request) -> Version:
    sets: MigrationSets = request.app.state.sets
    versions = installed_versions()
    return {
        "migrate_ckpt": versions.migrate_ckpt,
        "python": versions.python,
        "torch": versions.torch,
        "sets": sets.current.digests(),
    }

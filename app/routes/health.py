"""GET /livez, /readyz and /version: for probes, and for people who ask what is running."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request

from app.errors import ServiceError
from app.fingerprint import installed_versions
from app.openapi import PROBLEMS
from app.readiness import OK, check
from migrate_ckpt import read_sets

router = APIRouter()


@router.get("/livez", summary="Say that the process answers")
async def livez() -> dict[str, str]:
    return {"status": "alive"}


@router.get(
    "/readyz",
    responses=PROBLEMS,
    summary="Say whether checkpoints are taken; with ?verbose, each point that was checked",
)
async def readyz(request: Request, verbose: str | None = None) -> dict[str, Any]:
    state = request.app.state
    checks = await check(
        migrations_folder=state.settings.migrations_folder,
        scratch_root=state.scratch_root,
        sandbox=state.sandbox,
    )
    wrong = {name: what for name, what in checks.items() if what != OK}
    if wrong:
        raise ServiceError("not_ready", " ".join(wrong.values()), retryable=True, checks=checks)
    return {"status": "ready"} if verbose is None else {"status": "ready", "checks": checks}


@router.get("/version", responses=PROBLEMS, summary="Say what is running")
def version(request: Request) -> dict[str, Any]:
    sets = read_sets(request.app.state.settings.migrations_folder)
    digests = {name: migration_set.digest for name, migration_set in sets.items()}
    return {**asdict(installed_versions()), "sets": digests}

"""POST /migrate and PUT /migrate/{filename}: a checkpoint in, the migrated one out."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from app.digests import wanted_algorithm
from app.documents import Job
from app.jobs.answers import answer_as_job, is_for_a_job
from app.openapi import BODY_HEADERS, PROBLEMS, takes_checkpoint
from app.parameters import RUN_PARAMETERS
from app.responses import FILE_TYPE, ZIP_TYPE, answer_migrated, negotiate
from app.runs import run_upload
from app.scratch import Scratch, new_scratch

router = APIRouter()

_OF_A_JOB: dict[str, Any] = {
    "Location": {"description": "Where the job is.", "schema": {"type": "string"}},
    "Preference-Applied": {"schema": {"type": "string"}},
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The migrated checkpoint; a zip of it and report.json, or the job that has made it.",
        "model": Job,
        "content": {
            FILE_TYPE: {"schema": {"type": "string", "format": "binary"}},
            ZIP_TYPE: {"schema": {"type": "string", "format": "binary"}},
        },
        "headers": {
            "Migration-Report": {
                "description": "What ran and what did not, as ASCII JSON of at most 2 KB.",
                "schema": {"type": "string"},
            },
            "Content-Disposition": {"schema": {"type": "string"}},
            **_OF_A_JOB,
            "Repr-Digest": {
                "description": "Where Want-Repr-Digest asks for it (RFC 9530): of sha-256 or sha-512.",
                "schema": {"type": "string"},
            },
        },
    },
    202: {
        "description": "The job is stored, and has not ended: with `Prefer: respond-async`, or where JSON is wanted.",
        "model": Job,
        "headers": _OF_A_JOB,
    },
    **PROBLEMS,
}
_TAKES = takes_checkpoint(headers=("Prefer", "Idempotency-Key", "Want-Repr-Digest", *BODY_HEADERS))


@router.post(
    "/migrate",
    response_class=Response,
    responses=_RESPONSES,
    openapi_extra=_TAKES,
    summary="Migrate a checkpoint",
)
async def migrate(request: Request, scratch: Annotated[Scratch, Depends(new_scratch)]) -> Response:
    return await _answer(request, scratch)


@router.put(
    "/migrate/{filename}",
    response_class=Response,
    responses=_RESPONSES,
    openapi_extra=_TAKES,
    summary="Migrate a checkpoint that has a name (curl -T)",
)
async def migrate_named(
    request: Request, filename: str, scratch: Annotated[Scratch, Depends(new_scratch)]
) -> Response:
    return await _answer(request, scratch, filename=filename)


async def _answer(request: Request, scratch: Scratch, *, filename: str | None = None) -> Response:
    media_type = negotiate(request, has_jobs=request.app.state.jobs is not None)
    if is_for_a_job(request, media_type):
        return await answer_as_job(request, media_type=media_type, filename=filename)
    done = await run_upload(request, scratch, "migrate", parameters=RUN_PARAMETERS)
    return await answer_migrated(
        done,
        scratch,
        media_type=media_type,
        filename=filename,
        digest_algorithm=wanted_algorithm(request.headers),
    )

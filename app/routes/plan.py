"""POST /plan: what would run on a checkpoint; nothing is migrated."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from app.ascii_json import AsciiJSONResponse
from app.documents import Plan
from app.openapi import answers, takes_checkpoint
from app.parameters import PLAN_PARAMETERS
from app.runs import run_upload
from app.scratch import Scratch, new_scratch

router = APIRouter()


@router.post(
    "/plan",
    responses=answers(
        Plan, "What would run, and with `changes=true` what each migration would change."
    ),
    openapi_extra=takes_checkpoint(PLAN_PARAMETERS),
    summary="Say what would run",
)
async def plan(
    request: Request, scratch: Annotated[Scratch, Depends(new_scratch)]
) -> AsciiJSONResponse:
    done = await run_upload(request, scratch, "plan", parameters=PLAN_PARAMETERS)
    return AsciiJSONResponse(done.result)

"""POST /inspect: what is in a checkpoint, without loading it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from app.ascii_json import AsciiJSONResponse
from app.documents import Inspection
from app.openapi import answers, takes_checkpoint
from app.runs import run_upload
from app.scratch import Scratch, new_scratch

router = APIRouter()


@router.post(
    "/inspect",
    responses=answers(Inspection, "What is in the file."),
    openapi_extra=takes_checkpoint(()),
    summary="Say what is in a checkpoint",
)
async def inspect(
    request: Request, scratch: Annotated[Scratch, Depends(new_scratch)]
) -> AsciiJSONResponse:
    done = await run_upload(request, scratch, "inspect")
    return AsciiJSONResponse(done.result)

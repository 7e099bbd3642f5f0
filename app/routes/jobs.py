"""/jobs: checkpoints that are migrated later, how far they are, and their results."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from app.ascii_json import AsciiJSONResponse
from app.documents import DeliveryList, JobList
from app.documents import Job as JobDocument
from app.jobs.answers import answer_document, answer_result, describe, describe_deliveries
from app.jobs.intake import find_office, take_job
from app.jobs.job import Job, Status
from app.jobs.office import POLL_SECONDS, JobOffice
from app.jobs.orders import JobOrder, take_order
from app.jobs.preferences import read_preferences
from app.openapi import BODY_HEADERS, PROBLEMS, answers, takes_checkpoint, takes_headers
from app.parameters import JOB_PARAMETERS
from app.responses import FILE_TYPE, JSON_TYPE

router = APIRouter(prefix="/jobs")

EVENTS_TYPE = "text/event-stream"
# A proxy on the way takes a connection for dead that is silent for longer.
KEEP_ALIVE_SECONDS = 15.0

_ACCEPTED: dict[int | str, dict[str, Any]] = {
    202: {
        "description": "The job is stored.",
        "model": JobDocument,
        "headers": {"Location": {"schema": {"type": "string"}}},
    },
    **PROBLEMS,
}
_FILE = {FILE_TYPE: {"schema": {"type": "string", "format": "binary"}}}
_OF_A_RESULT = {
    name: {"schema": {"type": "string"}}
    for name in ("ETag", "Migration-Report", "Content-Disposition", "Repr-Digest")
}
_RESULT: dict[int | str, dict[str, Any]] = {
    200: {"description": "The migrated checkpoint.", "content": _FILE, "headers": _OF_A_RESULT},
    206: {
        "description": "The range that was asked for, or several as parts.",
        "content": {**_FILE, "multipart/byteranges": {"schema": {"type": "string"}}},
        "headers": {"Content-Range": {"schema": {"type": "string"}}, **_OF_A_RESULT},
    },
    304: {"description": "It is there already.", "headers": _OF_A_RESULT},
    **PROBLEMS,
}
_EVENT = {
    "description": "One event; its data is the document as JSON.",
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {"const": "status"},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}
_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "An event `status` with the job's document, each time that it has changed.",
        "content": {EVENTS_TYPE: {"schema": _EVENT}},
    },
    **PROBLEMS,
}


@router.post(
    "",
    status_code=202,
    response_class=Response,
    responses=_ACCEPTED,
    openapi_extra=takes_checkpoint(
        JOB_PARAMETERS,
        headers=("Idempotency-Key", *BODY_HEADERS),
        order=JobOrder.model_json_schema(),
    ),
    summary="Have a checkpoint migrated later: the one in the body, or one that lies elsewhere",
)
async def submit(request: Request) -> Response:
    office = find_office(request)
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    take = take_order if content_type == JSON_TYPE else take_job
    return await answer_document(await take(request), office, status=202)


@router.get("", responses=answers(JobList, "The jobs."), summary="List the jobs, the newest first")
async def list_jobs(
    request: Request,
    status: Status | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
) -> AsciiJSONResponse:
    office = find_office(request)
    jobs = await office.engine.jobs(status=status, limit=limit, offset=offset)
    documents = await asyncio.gather(*(describe(job, office) for job in jobs))
    return AsciiJSONResponse({"jobs": documents})


@router.get(
    "/{job_id}",
    responses=answers(JobDocument, "The job as it stands."),
    openapi_extra=takes_headers("Prefer"),
    summary="Say how far a job is (Prefer: wait=N waits)",
)
async def show(request: Request, job_id: str) -> Response:
    office = find_office(request)
    preferences = read_preferences(request.headers.getlist("prefer"))
    job = await office.wait(await office.find(job_id), preferences.wait_seconds)
    return await answer_document(job, office)


@router.delete(
    "/{job_id}",
    responses=answers(JobDocument, "The job, which has ended or is about to."),
    summary="Cancel a job, and end its run",
)
async def cancel(request: Request, job_id: str) -> Response:
    office = find_office(request)
    return await answer_document(await office.cancel(job_id), office)


@router.get(
    "/{job_id}/result",
    response_class=Response,
    responses=_RESULT,
    openapi_extra=takes_headers("Range", "If-None-Match", "Want-Repr-Digest"),
    summary="Fetch the migrated checkpoint, or a range of it",
)
async def result(request: Request, job_id: str) -> Response:
    office = find_office(request)
    return await answer_result(request, await office.find(job_id), office)


@router.head("/{job_id}/result", include_in_schema=False)
async def result_head(request: Request, job_id: str) -> Response:
    return await result(request, job_id)


@router.get(
    "/{job_id}/deliveries",
    responses=answers(DeliveryList, "The deliveries."),
    summary="Say how the job's end was told to its callback",
)
async def deliveries(request: Request, job_id: str) -> Response:
    office = find_office(request)
    job = await office.find(job_id)
    return AsciiJSONResponse(await describe_deliveries(job, office))


@router.post(
    "/{job_id}/deliveries",
    status_code=202,
    response_class=Response,
    responses={
        202: {"model": DeliveryList, "description": "One more delivery is on its way."},
        **PROBLEMS,
    },
    summary="Tell the job's end to its callback once more",
)
async def redeliver(request: Request, job_id: str) -> Response:
    office = find_office(request)
    job = await office.find(job_id)
    await office.redeliver(job)
    return AsciiJSONResponse(await describe_deliveries(job, office), 202)


@router.get(
    "/{job_id}/events",
    response_class=Response,
    responses=_EVENTS,
    summary="Follow a job until it has ended (server-sent events)",
)
async def events(request: Request, job_id: str) -> Response:
    office = find_office(request)
    job = await office.find(job_id)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_follow(job, office), headers=headers, media_type=EVENTS_TYPE)


async def _follow(job: Job, office: JobOffice) -> AsyncIterator[bytes]:
    said, when = "", time.monotonic()
    while True:
        text = json.dumps(await describe(job, office))
        if text != said:
            said, when = text, time.monotonic()
            yield f"event: status\ndata: {text}\n\n".encode("ascii")
        elif time.monotonic() - when > KEEP_ALIVE_SECONDS:
            when = time.monotonic()
            yield b": nothing new\n\n"
        if job.has_ended or office.is_stopping():
            return
        await asyncio.sleep(POLL_SECONDS)
        job = await office.find(job.id)

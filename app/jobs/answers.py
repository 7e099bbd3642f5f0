"""A job as its JSON document says it, and the answers that are made of one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from fastapi import Request, Response

from app.ascii_json import AsciiJSONResponse
from app.digests import repr_digest_of, wanted_algorithm
from app.errors import RunFailed, ServiceError
from app.filenames import attachment, migrated_name
from app.jobs.delivery import DeliveryState
from app.jobs.intake import find_office, take_job
from app.jobs.job import MODELS, Job
from app.jobs.office import JobOffice
from app.jobs.preferences import read_preferences
from app.jobs.results import KeptResult
from app.responses import (
    FILE_TYPE,
    JSON_TYPE,
    ZIP_TYPE,
    new_extension,
)
from app.storage.locations import parse_address, parse_location

# When to look again at a job that has not ended.
RETRY_AFTER_SECONDS = 1


async def describe(job: Job, office: JobOffice) -> dict[str, Any]:
    """Return the document of a job."""
    is_elsewhere = job.request.destination is not None or job.request.is_of_model
    kept = None if is_elsewhere else await office.result(job)
    return {
        **_describe_order(job),
        "callback": job.request.callback and _shown(job.request.callback),
        "started": _date(job.started),
        "queue_position": job.queue_position,
        "progress": job.progress and job.progress.to_dict(),
        "report": job.outcome and job.outcome["report"],
        "model": job.outcome and job.outcome.get("model"),
        "result": kept and _describe_result(job, kept),
        "problem": job.problem and _describe_problem(job.problem),
    }


async def describe_deliveries(job: Job, office: JobOffice) -> dict[str, Any]:
    """Return the document of a job's deliveries, each with its attempts."""
    states = await office.engine.deliveries(job.id)
    numbers = sorted({state.delivery.number for state in states})
    each = [[s for s in states if s.delivery.number == number] for number in numbers]
    return {"deliveries": [_describe_delivery(attempts) for attempts in each]}


def _describe_delivery(states: Sequence[DeliveryState]) -> dict[str, Any]:
    last = states[-1]
    status = "sending" if last.is_running else "scheduled"
    if last.attempt is not None:
        status = "delivered" if last.attempt.is_delivered else "failed"
    return {
        "number": last.delivery.number,
        "webhook_id": last.delivery.webhook_id,
        "url": _shown(last.delivery.url),
        "event": last.delivery.event,
        "status": status,
        "attempts": [
            {
                "due": _date(state.delivery.due or None),
                "at": _date(state.attempt.at if state.attempt else None),
                "seconds": state.attempt and state.attempt.seconds,
                "status": state.attempt and state.attempt.status,
                "error": state.attempt and state.attempt.error,
            }
            for state in states
        ],
    }


def describe_briefly(job: Job) -> dict[str, Any]:
    """Return what fits into a message: of the report only what the header says, of a problem only why."""
    problem = job.problem and _describe_problem(job.problem)
    return {
        **_describe_order(job),
        "report": job.outcome and json.loads(job.outcome["header"]),
        "problem": problem and {name: problem[name] for name in ("error_type", "detail")},
    }


def _describe_order(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "status": job.status,
        "url": f"/jobs/{job.id}",
        "filename": job.request.filename,
        "size": _size(job),
        "source": job.request.source and _shown(job.request.source),
        "destination": job.request.destination and _shown(job.request.destination),
        "created": _date(job.created),
        "ended": _date(job.ended),
    }


def _size(job: Job) -> int | None:
    if job.request.size is not None or job.outcome is None or job.outcome["report"] is None:
        return job.request.size
    size: int = job.outcome["report"]["source"]["size"]
    return size


def _shown(url: str) -> str:
    """Return a URL without its query, which may hold a signature."""
    if url.startswith(MODELS):
        return url
    return str(parse_address(url) if url.startswith("http") else parse_location(url))


def _describe_result(job: Job, kept: KeptResult) -> dict[str, Any]:
    return {
        "url": f"/jobs/{job.id}/result",
        "fingerprint": kept.fingerprint,
        "size": kept.size,
        "expires": _date(kept.expires),
    }


def _describe_problem(problem: Mapping[str, Any]) -> dict[str, Any]:
    """Say `detail` for the message, as a problem that is an answer does."""
    return {("detail" if name == "message" else name): value for name, value in problem.items()}


def _date(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    date = datetime.fromtimestamp(seconds, timezone.utc)
    return date.isoformat(timespec="seconds").replace("+00:00", "Z")


def is_for_a_job(request: Request, media_type: str) -> bool:
    """Return whether /migrate is to answer this request by way of a job."""
    if request.app.state.jobs is None or media_type == ZIP_TYPE:
        # Preferences that cannot be met are passed over.
        return False
    return media_type == JSON_TYPE or read_preferences(request.headers.getlist("prefer")).is_async


async def answer_as_job(
    request: Request, *, media_type: str, filename: str | None = None
) -> Response:
    """Take the checkpoint in the body as a job, and answer as if there were none where it ends in time.

    Raises:
        ServiceError: the request is refused, or the job has ended and failed.
        UnknownSet: there is no such set of migrations.
        ClientDisconnect: the client went before it had sent everything.
    """
    office = find_office(request)
    preferences = read_preferences(request.headers.getlist("prefer"))
    job = await take_job(request, filename=filename)
    job = await office.wait(job, preferences.wait_seconds if preferences.is_async else None)
    if not job.has_ended:
        response = await answer_document(job, office, status=202)
    elif media_type == JSON_TYPE:
        raise_without_result(job)
        response = await answer_document(job, office)
    else:
        response = await answer_result(request, job, office)
    if preferences.is_async:
        response.headers["Preference-Applied"] = "respond-async"
    response.headers["Location"] = f"/jobs/{job.id}"
    return response


async def answer_document(job: Job, office: JobOffice, *, status: int = 200) -> Response:
    """Answer with the document of a job, and say when to ask again where it has not ended."""
    headers = {"Location": f"/jobs/{job.id}"} if status != 200 else {}
    if not job.has_ended:
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return AsciiJSONResponse(await describe(job, office), status, headers)


async def answer_result(request: Request, job: Job, office: JobOffice) -> Response:
    """Answer with the migrated checkpoint of a job, or the part of it that is asked for.

    Raises:
        ServiceError: there is none: the job failed, has not ended, or its result has expired.
    """
    raise_without_result(job)
    if job.request.destination is not None:
        message = f"The result of this job was written to {_shown(job.request.destination)}."
        raise ServiceError("result_delivered", message)
    if job.request.is_of_model:
        message = "The result of this job is a version of its model: the job's document says which."
        raise ServiceError("result_delivered", message)
    kept = await office.result(job)
    if kept is None:
        message = "The result of this job has expired; send the checkpoint again."
        raise ServiceError("result_expired", message)
    name = migrated_name(job.request.filename, extension=new_extension(kept.facts["report"]))
    headers = {
        "ETag": f'"{kept.fingerprint}"',
        "Migration-Report": kept.facts["header"],
        "Content-Disposition": attachment(name),
    }
    algorithm = wanted_algorithm(request.headers)
    if algorithm is not None:
        # Of the whole result, whatever range of it is asked for.
        headers["Repr-Digest"] = await repr_digest_of(algorithm, kept.blocks())
    if _has_it_already(request.headers.get("if-none-match"), headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return kept.answer(headers, FILE_TYPE)


def raise_without_result(job: Job) -> None:
    """Say why a job has no result, where it has none.

    Raises:
        ServiceError: it failed, was cancelled, or has not ended.
    """
    if job.status == "failed":
        assert job.problem is not None
        raise RunFailed.from_dict(job.problem)
    if job.status == "cancelled":
        raise ServiceError("cancelled", "The job was cancelled.")
    if job.status != "succeeded":
        message = f"The job is {job.status}; its result is here when it has succeeded."
        raise ServiceError(
            "job_not_ended", message, retryable=True, retry_after=RETRY_AFTER_SECONDS
        )


def _has_it_already(if_none_match: str | None, etag: str) -> bool:
    if if_none_match is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in tags or etag in tags

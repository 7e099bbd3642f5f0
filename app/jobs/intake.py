"""A request becomes a job: its body is received into the data folder, and the job stored before the answer."""

from __future__ import annotations

import hashlib
import secrets
import time

from fastapi import Request

from app.admission import Admission
from app.errors import ServiceError
from app.jobs.job import Job, JobRequest
from app.jobs.office import JobOffice
from app.jobs.preferences import read_idempotency_key
from app.parameters import CALLBACK, JOB_PARAMETERS, RUN_PARAMETERS, check_query, read_parameters
from app.run_request import UPLOAD_NAME
from app.runs import take_upload
from app.scratch import Scratch
from app.scratch_room import free_bytes
from app.sets import MigrationSets
from app.settings import PREFIX
from app.uploads import declared_bytes


def find_office(request: Request) -> JobOffice:
    """Return the jobs of this service.

    Raises:
        ServiceError: it has none.
    """
    office: JobOffice | None = request.app.state.jobs
    if office is None:
        message = (
            "This service keeps no jobs: its operator has not said where, with "
            f"{PREFIX}DATA_FOLDER. POST /migrate answers at once."
        )
        raise ServiceError("no_jobs", message)
    return office


async def take_job(request: Request, *, filename: str | None = None) -> Job:
    """Receive the checkpoint in the body, and return the job that it has become.

    Raises:
        ServiceError: the request is refused.
        UnknownSet: there is no such set of migrations.
        ClientDisconnect: the client went before it had sent everything.
    """
    office = find_office(request)
    admission: Admission = request.app.state.admission
    sets: MigrationSets = request.app.state.sets
    # What can be refused before the body is read, is.
    query = request.query_params.multi_items()
    check_query(query, JOB_PARAMETERS)
    callback, query = _take_callback(query)
    if callback is not None:
        office.callbacks.refuse(callback)
    sets.current.find(read_parameters(query).set)
    job_id = new_job_id(request)
    declared = declared_bytes(request, max_bytes=request.app.state.settings.max_upload_bytes)
    _refuse_full_disk(office, declared)
    await office.refuse_when_full(job_id)
    with admission.place(declared) as place:
        scratch = Scratch(office.folders.incoming)
        try:
            upload = await take_upload(request, scratch, place, field_names=RUN_PARAMETERS)
            parameters = read_parameters([*query, *upload.fields])
            sets.current.find(parameters.set)
            asked = JobRequest(
                job_id,
                upload.filename or filename,
                upload.size,
                upload.digest,
                parameters,
                callback=callback,
            )
            return await office.accept(asked, scratch.folder / UPLOAD_NAME)
        finally:
            scratch.remove()


def _take_callback(
    query: list[tuple[str, str]],
) -> tuple[str | None, list[tuple[str, str]]]:
    """Return the callback of a query, and what the rest of it says.

    Raises:
        ServiceError: it is given twice.
    """
    given = [value for name, value in query if name == CALLBACK]
    if len(given) > 1:
        message = f'The parameter "{CALLBACK}" is given more than once.'
        raise ServiceError("invalid_parameter", message, parameter=CALLBACK)
    return next(iter(given), None), [each for each in query if each[0] != CALLBACK]


def new_job_id(request: Request) -> str:
    """Return the id for a new job, which is the same for the same key of the same client."""
    key = read_idempotency_key(request.headers.get("idempotency-key"))
    if key is None:
        # In the order of their making, by which those of one second are queued.
        return f"{time.time_ns():016x}{secrets.token_hex(8)}"
    client = request.state.token_name or ""
    return hashlib.sha256(f"{client}\n{key}".encode()).hexdigest()[:32]


def _refuse_full_disk(office: JobOffice, declared: int | None) -> None:
    if (declared or 0) > free_bytes(office.folders.incoming):
        message = f"The disk that jobs are kept on has no room for {declared} bytes."
        raise ServiceError("no_space", message, retryable=True)

"""What must be so for this service to take a checkpoint, and what an operator should know beside it."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from starlette.datastructures import State

from app.access import Access
from app.admission import Admission
from app.errors import ServiceError
from app.jobs.office import JobOffice
from app.sandbox import Sandbox
from app.scratch_room import SPARE_BYTES, free_bytes
from app.sets import MigrationSets

OK = "ok"

# Without these no checkpoint can be taken. The others say that something waits for its operator.
NEEDED = ("admission", "sandbox", "scratch")

# Whoever probes waits no longer.
JOBS_SECONDS = 2.0


async def check(state: State) -> dict[str, str]:
    """Return for each point "ok", or what is wrong."""
    return {
        "access": _access(state.access),
        "admission": _admission(state.admission),
        "jobs": await _jobs(state.jobs),
        "migrations": _migrations(state.sets),
        "sandbox": await _sandbox(state.sandbox),
        "scratch": await asyncio.to_thread(_scratch, state.scratch_root),
    }


def _access(access: Access) -> str:
    return access.problem or OK


def _admission(admission: Admission) -> str:
    # A full queue is no reason to be sent nothing: the answer to that is a 503 that says when to come again.
    return "The service is stopping." if admission.is_stopping else OK


async def _jobs(office: JobOffice | None) -> str:
    try:
        if office is not None:
            await asyncio.wait_for(office.count_waiting(), JOBS_SECONDS)
    except (ServiceError, asyncio.TimeoutError):
        return "The database that jobs are kept in does not answer."
    return OK


def _migrations(sets: MigrationSets) -> str:
    return sets.problem or OK


async def _sandbox(sandbox: Sandbox) -> str:
    # Where it has died it is started again: to a service that is not ready no run would be sent.
    try:
        await sandbox.start()
    except ServiceError as error:
        return str(error)
    return OK


def _scratch(folder: Path) -> str:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        return f"The scratch folder cannot be written to: {error.strerror}."
    if free_bytes(folder) < SPARE_BYTES:
        return "The scratch disk is full."
    return OK

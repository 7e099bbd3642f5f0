"""One run from the body of a request to its result: receive, find the set, run in the sandbox, give up when asked."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Collection, Coroutine
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NoReturn, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from app.admission import Admission
from app.errors import ServiceError
from app.fingerprint import fingerprint, installed_versions
from app.parameters import RunParameters, check_query, read_parameters
from app.request_facts import RequestFacts
from app.run_facts import RunFacts
from app.run_request import OUTCOME_NAME, RunRequest
from app.sandbox import Sandbox
from app.scratch import Scratch
from app.scratch_room import Place
from app.sets import LoadedSets, MigrationSets
from app.settings import Settings
from app.telemetry import Telemetry
from app.uploads import Upload, declared_bytes, receive

T = TypeVar("T")

# A client that sends less than this in that time holds a place that others could use.
STALL_SECONDS = 60.0
STALL_BYTES = 2**16


@dataclass(frozen=True, slots=True)
class Done:
    """A run that came to a result."""

    upload: Upload
    result: dict[str, Any]


async def run_upload(
    request: Request,
    scratch: Scratch,
    action: Literal["migrate", "plan", "inspect"],
    *,
    parameters: Collection[str] = (),
) -> Done:
    """Take the checkpoint in the body through one run.

    Raises:
        ServiceError: the request is refused, or the run failed.
        UnknownSet: there is no such set of migrations.
        ClientDisconnect: the client has gone, and the run with it.
    """
    settings: Settings = request.app.state.settings
    admission: Admission = request.app.state.admission
    sets: MigrationSets = request.app.state.sets
    telemetry: Telemetry = request.app.state.telemetry
    check_query(request.query_params.multi_items(), parameters)
    query = request.query_params.multi_items()
    if action != "inspect":
        # What can be refused before the body is read, is.
        sets.current.find(read_parameters(query).set)
    declared = declared_bytes(request, max_bytes=settings.max_upload_bytes)
    with admission.place(declared) as place, sets.hold() as held:
        upload = await take_upload(request, scratch, place, field_names=parameters)
        asked = read_parameters([*query, *upload.fields])
        order = RunRequest(action, str(scratch.folder))
        if action != "inspect":
            order = with_migrations(order, asked, upload.digest, held, settings)
        migration_set = held.find(asked.set) if action != "inspect" else None
        with telemetry.run(action, upload.size, migration_set) as facts:
            request.state.facts.run = facts
            step: dict[str, object] = {}
            running = _run_in_turn(request, order, facts, step)
            await _unless(running, _client_gone(request), admission.given_up(step))
            return Done(upload, facts.take(await scratch.do(_read_outcome, scratch)))


async def take_upload(
    request: Request, scratch: Scratch, place: Place, *, field_names: Collection[str]
) -> Upload:
    """Receive the body of a request that has a place.

    Raises:
        ServiceError: it cannot be used, does not come in, or the service stops.
        ClientDisconnect: the client went before it had sent everything.
    """
    admission: Admission = request.app.state.admission
    facts: RequestFacts = request.state.facts
    receiving = receive(
        request,
        scratch,
        max_bytes=request.app.state.settings.max_upload_bytes,
        field_names=field_names,
        on_received=partial(admission.receive, place),
    )
    facts.receiving = time.monotonic()
    upload = await _unless(receiving, _stalled(place), admission.given_up())
    facts.received = time.monotonic()
    return upload


async def _run_in_turn(
    request: Request, order: RunRequest, facts: RunFacts, step: dict[str, object]
) -> None:
    """Run when it is its turn; `step` holds, as a problem names it, the migration that was begun last."""

    def note(position: int, count: int, name: str) -> None:
        step.update(position=position, count=count, migration=name)
        facts.hear_of(name)

    sandbox: Sandbox = request.app.state.sandbox
    async with request.app.state.admission.turn(facts.input_bytes):
        facts.begin()
        await sandbox.run(order, label=request.state.request_id, on_step=note, facts=facts)


def with_migrations(
    order: RunRequest,
    asked: RunParameters,
    input_digest: str,
    held: LoadedSets,
    settings: Settings,
) -> RunRequest:
    """Return the order with all that it takes beside the upload.

    Raises:
        UnknownSet: there is no such set of migrations.
    """
    set_digest = held.find(asked.set).digest
    policy = asked.policy or settings.policy
    return replace(
        order,
        migrations_folder=str(held.folder),
        set_name=asked.set,
        set_digest=set_digest,
        to=asked.to,
        policy=policy,
        allow_unknown_history=asked.allow_unknown_history,
        format=asked.format,
        changes=asked.changes,
        inspection=asked.inspection,
        allowed_globals=settings.allowed_globals,
        fingerprint=fingerprint(
            input_digest=input_digest,
            set_name=asked.set,
            set_digest=set_digest,
            to=asked.to,
            policy=policy,
            allow_unknown_history=asked.allow_unknown_history,
            format=asked.format,
            versions=installed_versions(),
        ),
    )


async def _unless(work: Coroutine[Any, Any, T], *ends: Coroutine[Any, Any, NoReturn]) -> T:
    """Return what the work returns, unless one of the others raises first: then the work is cancelled."""
    working = asyncio.ensure_future(work)
    ending = [asyncio.ensure_future(end) for end in ends]
    try:
        await asyncio.wait({working, *ending}, return_when=asyncio.FIRST_COMPLETED)
        for end in ending:
            if end.done() and not working.done():
                end.result()
        return working.result()
    finally:
        for task in (working, *ending):
            task.cancel()
        await asyncio.gather(working, *ending, return_exceptions=True)


async def _client_gone(request: Request) -> NoReturn:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    raise ClientDisconnect


async def _stalled(place: Place) -> NoReturn:
    while True:
        before = place.received
        await asyncio.sleep(STALL_SECONDS)
        if place.received - before < STALL_BYTES:
            message = f"Fewer than {STALL_BYTES} bytes came in {STALL_SECONDS:g} seconds."
            raise ServiceError("upload_stalled", message, retryable=True)


def _read_outcome(scratch: Scratch) -> dict[str, Any]:
    return read_outcome(os.dup(scratch.open(OUTCOME_NAME)))


def read_outcome(descriptor: int) -> dict[str, Any]:
    """Read what a run has written down, and close its file."""
    with os.fdopen(descriptor, encoding="ascii") as file:
        outcome: dict[str, Any] = json.load(file)
    return outcome

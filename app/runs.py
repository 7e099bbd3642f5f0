"""One run from the body of a request to its result: receive, find the set, run in the sandbox, give up when asked."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Collection, Coroutine
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from app.errors import RunFailed
from app.fingerprint import fingerprint, installed_versions
from app.parameters import RunParameters, read_parameters, refuse_unknown
from app.run_request import OUTCOME_NAME, RunRequest
from app.sandbox import Sandbox
from app.scratch import Scratch
from app.settings import Settings
from app.uploads import Upload, receive
from migrate_ckpt import MigrationSet, read_set

T = TypeVar("T")


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
        MigrateCkptError: the folder of migrations has no such set, or cannot be read.
        ClientDisconnect: the client has gone, and the run with it.
    """
    settings: Settings = request.app.state.settings
    refuse_unknown(request.query_params.keys(), parameters)
    query = request.query_params.multi_items()
    if action != "inspect":
        # What can be refused before the body is read, is.
        await _find_set(settings, read_parameters(query))
    upload = await receive(
        request, scratch, max_bytes=settings.max_upload_bytes, field_names=parameters
    )
    asked = read_parameters([*query, *upload.fields])
    order = RunRequest(action, str(scratch.folder))
    if action != "inspect":
        order = await _with_migrations(order, asked, upload, settings)
    sandbox: Sandbox = request.app.state.sandbox
    await _unless_gone(request, sandbox.run(order, label=request.state.request_id))
    return Done(upload, await scratch.do(_read_result, scratch))


async def _with_migrations(
    order: RunRequest, asked: RunParameters, upload: Upload, settings: Settings
) -> RunRequest:
    migration_set = await _find_set(settings, asked)
    policy = asked.policy or settings.policy
    return replace(
        order,
        migrations_folder=str(settings.migrations_folder),
        set_name=asked.set,
        set_digest=migration_set.digest,
        to=asked.to,
        policy=policy,
        allow_unknown_history=asked.allow_unknown_history,
        format=asked.format,
        allowed_globals=settings.allowed_globals,
        fingerprint=fingerprint(
            input_digest=upload.digest,
            set_name=asked.set,
            set_digest=migration_set.digest,
            to=asked.to,
            policy=policy,
            allow_unknown_history=asked.allow_unknown_history,
            format=asked.format,
            versions=installed_versions(),
        ),
    )


async def _find_set(settings: Settings, asked: RunParameters) -> MigrationSet:
    return await asyncio.to_thread(read_set, settings.migrations_folder, asked.set)


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return what the work returns, unless the client goes first: then the work is cancelled."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_client_gone(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.wait({working, leaving})


async def _client_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _read_result(scratch: Scratch) -> dict[str, Any]:
    with os.fdopen(os.dup(scratch.open(OUTCOME_NAME)), encoding="ascii") as file:
        outcome = json.load(file)
    if "error" in outcome:
        raise RunFailed.from_dict(outcome["error"])
    result: dict[str, Any] = outcome["result"]
    return result

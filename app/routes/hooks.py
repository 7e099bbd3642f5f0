"""POST /hooks/mlflow and /hooks/standard: a registry says that there is a checkpoint to migrate."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from app.ascii_json import AsciiJSONResponse
from app.documents import HookAnswer
from app.errors import ServiceError
from app.hooks.mlflow import read_event
from app.hooks.receiving import Ignored, come_again_soon, receive
from app.hooks.signatures import MLFLOW, STANDARD, Scheme
from app.hooks.standard import job_id_of, read_delivery
from app.jobs.intake import find_office
from app.jobs.job import JobRequest
from app.jobs.orders import checked_request
from app.openapi import PROBLEMS
from app.registry.versions import request_for
from app.settings import Settings

router = APIRouter(prefix="/hooks")

_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"model": HookAnswer, "description": "It is the same job as before, or asks for nothing."},
    202: {"model": HookAnswer, "description": "A job is stored."},
    **PROBLEMS,
}


def _takes(scheme: Scheme) -> dict[str, Any]:
    names = [scheme.id_header, scheme.time_header, scheme.signature_header]
    # Not called required: where there is no secret, there is nothing that could require them.
    what = "Of a delivery that is signed; without it the answer is 401."
    return {
        "parameters": [
            {"name": name, "in": "header", "description": what, "schema": {"type": "string"}}
            for name in names
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"type": "object"}}},
        },
    }


@router.post(
    "/mlflow",
    response_class=Response,
    responses=_RESPONSES,
    openapi_extra=_takes(MLFLOW),
    summary="Take a delivery of an MLflow webhook: a new model version becomes a job",
)
async def mlflow(request: Request) -> Response:
    settings: Settings = request.app.state.settings
    secrets = settings.mlflow_secrets if settings.mlflow_url is not None else ()
    _, said = await receive(request, MLFLOW, secrets)
    try:
        version = read_event(said)
    except Ignored as reason:
        return _ignored(str(reason))
    asked = request_for(
        version,
        url=str(settings.mlflow_url),
        models=settings.mlflow_models,
        # Of ours, not of MLflow's: whoever has the secret may ask for what has failed once more.
        again=str(said.get("again", "")),
    )
    if asked is None:
        return _ignored(f"No set of migrations is meant for the model {version.name}.")
    request.app.state.sets.current.find(asked.parameters.set)
    return await _accept(request, asked)


@router.post(
    "/standard",
    response_class=Response,
    responses=_RESPONSES,
    openapi_extra=_takes(STANDARD),
    summary="Take a delivery of Standard Webhooks that names a source, and a destination for the result",
)
async def standard(request: Request) -> Response:
    settings: Settings = request.app.state.settings
    delivery_id, said = await receive(request, STANDARD, settings.hook_secrets)
    job_id = job_id_of(delivery_id)
    try:
        order = read_delivery(said)
    except Ignored as reason:
        return _ignored(str(reason))
    asked = checked_request(job_id, order, find_office(request), request.app.state.sets)
    return await _accept(request, asked)


async def _accept(request: Request, asked: JobRequest) -> Response:
    """Store the job, unless it is there; the sender waits for no more than that."""
    office = find_office(request)
    try:
        is_known = await office.engine.status(asked.id) is not None
        job = await office.accept(asked)
    except ServiceError as error:
        raise come_again_soon(error) from error
    url = f"/jobs/{job.id}"
    answer = {"job": url, "status": job.status, "ignored": None}
    return AsciiJSONResponse(answer, 200 if is_known else 202, {"Location": url})


def _ignored(reason: str) -> Response:
    return AsciiJSONResponse({"job": None, "status": None, "ignored": reason}, 200)

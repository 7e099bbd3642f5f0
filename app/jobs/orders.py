"""A job by reference: JSON that says where the checkpoint lies, and where the result goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.errors import ServiceError
from app.jobs.intake import find_office, new_job_id
from app.jobs.job import Job, JobRequest
from app.jobs.office import JobOffice
from app.parameters import MAX_VALUE_CHARACTERS, RunParameters, check_query
from app.sets import MigrationSets
from app.small_bodies import read_small_body
from app.storage.locations import MAX_CHARACTERS
from migrate_ckpt import Format, Policy

MAX_ORDER_BYTES = 64 * 2**10


class JobOrder(BaseModel):
    """What the body says."""

    model_config = ConfigDict(extra="forbid")

    source: str = Field(
        max_length=MAX_CHARACTERS,
        description="The URL of the checkpoint: file:, s3:, gs:, az: or https:, as the operator allows.",
    )
    destination: str | None = Field(
        None,
        max_length=MAX_CHARACTERS,
        description="The URL to write the result to; without one it is kept here for a while.",
    )
    callback: str | None = Field(
        None, max_length=MAX_CHARACTERS, description="The URL that is told when the job has ended."
    )
    overwrite: bool = Field(False, description="Replace what is at the destination.")
    set: str = Field("default", max_length=MAX_VALUE_CHARACTERS)
    to: str | None = Field(None, max_length=MAX_VALUE_CHARACTERS)
    policy: Policy | None = None
    allow_unknown_history: bool = False
    format: Format | None = None

    def parameters(self) -> RunParameters:
        return RunParameters(
            set=self.set,
            to=self.to,
            policy=self.policy,
            allow_unknown_history=self.allow_unknown_history,
            format=self.format,
        )


async def take_order(request: Request) -> Job:
    """Read the body, and return the job that it has become.

    Raises:
        ServiceError: it is no order, or asks for what is not allowed.
        UnknownSet: there is no such set of migrations.
        ClientDisconnect: the client went before it had sent everything.
    """
    office = find_office(request)
    sets: MigrationSets = request.app.state.sets
    check_query(request.query_params.multi_items(), ())
    job_id = new_job_id(request)
    body = await read_small_body(
        request, max_bytes=MAX_ORDER_BYTES, what="An order for a job, as JSON,"
    )
    order = _read(body)
    return await office.accept(checked_request(job_id, order, office, sets))


def checked_request(
    job_id: str, order: JobOrder, office: JobOffice, sets: MigrationSets
) -> JobRequest:
    """Return the job that an order asks for; who has sent it learns at once, and not from a job that fails.

    Raises:
        ServiceError: it asks for what is not allowed.
        UnknownSet: there is no such set of migrations.
    """
    sets.current.find(order.set)
    source, _ = office.transfers.parse(order.source, order.destination)
    if order.callback is not None:
        office.callbacks.refuse(order.callback)
    return JobRequest(
        job_id,
        source.name,
        None,
        "",
        order.parameters(),
        source=order.source,
        destination=order.destination,
        overwrite=order.overwrite,
        callback=order.callback,
    )


def read_order(members: Mapping[str, Any]) -> JobOrder:
    """Return the order that these members make.

    Raises:
        ServiceError: they make none.
    """
    try:
        return JobOrder.model_validate(members, strict=True)
    except ValidationError as error:
        raise _invalid(error) from error


def _read(body: bytes) -> JobOrder:
    try:
        return JobOrder.model_validate_json(body, strict=True)
    except ValidationError as error:
        raise _invalid(error) from error


def _invalid(error: ValidationError) -> ServiceError:
    wrong = error.errors(include_url=False, include_input=False, include_context=False)
    sentences = [_describe(each["loc"], each["msg"]) for each in wrong[:5]]
    return ServiceError("invalid_order", " ".join(sentences))


def _describe(where: tuple[Any, ...], what: str) -> str:
    name = ".".join(map(str, where))
    return f'The member "{name}": {what}.' if name else f"The body: {what}."

"""The JSON documents that the service answers with, as OpenAPI describes them: each member, and no other."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, with_config
from typing_extensions import NotRequired, TypedDict

from app.jobs.delivery import DeliveryStatus
from app.jobs.job import Status
from migrate_ckpt import Policy

_closed = with_config(ConfigDict(extra="forbid"))


@_closed
class Entry(TypedDict):
    """A tensor, with dtype, shape and size in bytes, or a value, with a short text."""

    path: list[str]
    kind: str
    dtype: NotRequired[str]
    shape: NotRequired[list[int]]
    nbytes: NotRequired[int]
    text: NotRequired[str]


@_closed
class Change(TypedDict):
    """One thing that a migration would change."""

    change: Literal["added", "removed", "changed", "renamed"]
    before: NotRequired[Entry]
    after: NotRequired[Entry]


@_closed
class Step(TypedDict):
    """One migration of a plan; the later members are there where its changes were asked for."""

    name: str
    title: str
    digest: str | None
    state: Literal["applied", "pending", "missed", "unknown", "changed", "replaced"]
    will_run: bool
    changes: NotRequired[list[Change] | None]
    counts: NotRequired[dict[str, int]]
    truncated: NotRequired[bool]
    warnings: NotRequired[list[str]]
    error: NotRequired[dict[str, Any] | None]


# `from` is a keyword.
Renamed = TypedDict("Renamed", {"from": str, "to": str})
_closed(Renamed)


@_closed
class Inspection(TypedDict):
    """What is in a file."""

    format: str
    size: int
    protocol: int
    history: list[str] | None
    history_error: str | None
    globals: list[str]
    calls: dict[str, int]
    hidden_calls: dict[str, int]
    outline: list[Entry]
    outline_truncated: bool


@_closed
class Plan(TypedDict):
    """What a run would do; the last member is there where it was asked for."""

    set: str
    set_digest: str | None
    policy: Policy
    to: str | None
    applied: list[str]
    pending: list[str]
    missed: list[str]
    unknown: list[str]
    changed: list[str]
    to_run: list[str]
    renamed: list[Renamed]
    steps: list[Step]
    warnings: list[str]
    inspection: NotRequired[Inspection]


@_closed
class FileFacts(TypedDict):
    """The format and the size, in bytes, of a file; of a result also what was copied from the source as it was."""

    format: str
    size: int
    copied_bytes: NotRequired[int]


@_closed
class OptimizerReport(TypedDict):
    """In which migrations the optimizer's states went with the parameters, and after which they may not fit them."""

    followed: list[str]
    not_followed: list[str]


@_closed
class Report(TypedDict):
    """What a run did."""

    set: str
    set_digest: str | None
    policy: Policy
    to: str | None
    ran: list[str]
    not_applicable: list[str]
    applied: list[str]
    pending: list[str]
    missed: list[str]
    unknown: list[str]
    changed: list[str]
    renamed: list[Renamed]
    steps: list[Step]
    optimizer: OptimizerReport
    warnings: list[str]
    source: FileFacts | None
    target: FileFacts | None
    bytes_verified: bool | None
    fingerprint: str | None


@_closed
class ListedMigration(TypedDict):
    position: int
    name: str
    title: str
    digest: str
    declared: bool


@_closed
class ListedSet(TypedDict):
    set: str
    set_digest: str
    migrations: list[ListedMigration]


@_closed
class SetList(TypedDict):
    sets: list[ListedSet]


@_closed
class JobProgress(TypedDict):
    """In which of its steps a running job is, and how many bytes of that are done."""

    step: str
    position: int
    count: int
    migration: str | None
    done_bytes: int
    total_bytes: int | None


@_closed
class JobResult(TypedDict):
    url: str
    fingerprint: str
    size: int
    expires: str


class JobProblem(TypedDict):
    """Why a job failed: the members of the problem that /migrate would have answered with."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    error_type: str
    detail: str
    retryable: bool


@_closed
class JobModel(TypedDict):
    """Of a registered model's version: the one that was made of it, if any, and the report of each file."""

    new_version: str | None
    reports: dict[str, Report]


@_closed
class Job(TypedDict):
    """A job as it stands; the times are RFC 3339's, in UTC.

    Of a checkpoint that lies elsewhere `source` says where, and its size is known when it has been migrated. With a
    `destination` the result is there, and `result` is null.
    """

    id: str
    status: Status
    url: str
    filename: str | None
    size: int | None
    source: str | None
    destination: str | None
    callback: str | None
    created: str
    started: str | None
    ended: str | None
    queue_position: int | None
    progress: JobProgress | None
    report: Report | None
    model: JobModel | None
    result: JobResult | None
    problem: JobProblem | None


@_closed
class HookAnswer(TypedDict):
    """The job that a delivery has become, or why it asks for none."""

    job: str | None
    status: Status | None
    ignored: str | None


@_closed
class JobList(TypedDict):
    jobs: list[Job]


@_closed
class DeliveryAttempt(TypedDict):
    """One attempt to tell of a job's end; without `at` it is still to be made, at the time that `due` says."""

    due: str | None
    at: str | None
    seconds: float | None
    status: int | None
    error: str | None


@_closed
class Delivery(TypedDict):
    """The message that a job has ended, on its way to the job's callback; `webhook_id` is the same over all."""

    number: int
    webhook_id: str
    url: str
    event: str | None
    status: DeliveryStatus
    attempts: list[DeliveryAttempt]


@_closed
class DeliveryList(TypedDict):
    deliveries: list[Delivery]


@_closed
class Liveness(TypedDict):
    status: Literal["alive"]


@_closed
class Readiness(TypedDict):
    """With `verbose` also what each check says, the layers of the sandbox, and how many replicas may run."""

    status: Literal["ready"]
    checks: NotRequired[dict[str, str]]
    layers: NotRequired[dict[str, str]]
    replicas: NotRequired[str]


@_closed
class Version(TypedDict):
    """The versions in use, and the digest of each set of migrations."""

    migrate_ckpt: str
    python: str
    torch: str
    sets: dict[str, str]

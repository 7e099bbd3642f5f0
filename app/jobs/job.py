"""What a job is: what was asked for, how far it has come, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from app.parameters import RunParameters

# MLflow's own scheme for a version of a registered model: models:/NAME/VERSION.
MODELS = "models:/"

Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class JobRequest:
    """What was asked for; plain data, it is stored as JSON.

    Attributes:
        id: the job's.
        filename: what the checkpoint is called, if anything.
        size: of the upload in bytes; None where the checkpoint lies elsewhere.
        digest: the SHA-256 of the upload, in hex; empty where the checkpoint lies elsewhere.
        parameters: what the run is told.
        source: the URL of the checkpoint, where it is not an upload; or the version of a registered model.
        destination: the URL to write the result to, where it is not kept here.
        overwrite: whether what is at the destination may be replaced.
        callback: the URL that is told when the job has ended.
    """

    id: str
    filename: str | None
    size: int | None
    digest: str
    parameters: RunParameters
    source: str | None = None
    destination: str | None = None
    overwrite: bool = False
    callback: str | None = None

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> JobRequest:
        return cls(**{**stored, "parameters": RunParameters(**stored["parameters"])})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def is_of_model(self) -> bool:
        """Whether it is about a version of a registered model, and its result is the next one."""
        return self.source is not None and self.source.startswith(MODELS)

    def is_same_work(self, other: JobRequest) -> bool:
        """Return whether the other asks for the same of the same bytes, whatever they are called."""
        return self._work == other._work

    @property
    def _work(self) -> tuple[object, ...]:
        where = (self.source, self.destination, self.overwrite, self.callback)
        return (self.digest, *where, self.parameters)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a running job has come: in which of its steps it is, and how much of that is done."""

    step: str
    position: int
    count: int
    migration: str | None = None
    done_bytes: int = 0
    total_bytes: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it stands; the times are seconds since 1970."""

    request: JobRequest
    status: Status
    created: float
    started: float | None = None
    ended: float | None = None
    queue_position: int | None = None
    progress: Progress | None = None
    # What its last step returned: of a job that succeeded, its result and its report.
    outcome: Mapping[str, Any] | None = None
    # What a `to_dict` of the error says.
    problem: Mapping[str, Any] | None = None

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def has_ended(self) -> bool:
        return self.status in ("succeeded", "failed", "cancelled")

"""Jobs as DBOS keeps them: what its workflows and queues are called, and what a row of them says of a job."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from dbos import WorkflowStatus

from app.errors import ServiceError
from app.jobs.delivery import Attempt, Delivery, DeliveryState
from app.jobs.job import Job, JobRequest, Status

logger = logging.getLogger(__name__)

# One name and one version for good, for what is enqueued by one process may be taken up by a later one.
APPLICATION = "migrate-ckpt"
APPLICATION_VERSION = "1"

JOBS = "jobs"
JOB = "job"
PROGRESS = "progress"
DELIVERIES = "deliveries"
DELIVERY = "delivery"

_STATUSES: Mapping[str, Status] = {
    "ENQUEUED": "queued",
    "DELAYED": "queued",
    "PENDING": "running",
    "SUCCESS": "succeeded",
    "ERROR": "failed",
    "MAX_RECOVERY_ATTEMPTS_EXCEEDED": "failed",
    "CANCELLED": "cancelled",
}
# A job that failed for a known reason is, to DBOS, one whose function returned.
QUERIES: Mapping[Status, list[str]] = {
    "queued": ["ENQUEUED", "DELAYED"],
    "running": ["PENDING"],
    "succeeded": ["SUCCESS"],
    "failed": ["SUCCESS", "ERROR", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"],
    "cancelled": ["CANCELLED"],
}
# How a job ends that did not come to the end of its function, which puts its delivery on its way.
ENDED_FROM_OUTSIDE = ["ERROR", "MAX_RECOVERY_ATTEMPTS_EXCEEDED", "CANCELLED"]


def order_job(request: JobRequest) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what DBOS is to be told to enqueue a job, and what it hands on."""
    return _options(JOB, JOBS, request.id), request.to_dict()


def order_delivery(delivery: Delivery) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what DBOS is to be told to enqueue an attempt for when it is due, and what it hands on."""
    delay = max(delivery.due - time.time(), 0.0)
    return {
        **_options(DELIVERY, DELIVERIES, delivery.id),
        "delay_seconds": delay,
    }, delivery.to_dict()


def _options(workflow: str, queue: str, workflow_id: str) -> dict[str, Any]:
    return {
        "workflow_name": workflow,
        "queue_name": queue,
        "workflow_id": workflow_id,
        "app_version": APPLICATION_VERSION,
    }


def to_job(row: WorkflowStatus, *, max_tries: int) -> Job:
    """Return the job that a row keeps; how far it is, and where in the queue, is not in the row."""
    assert row.input is not None
    assert row.created_at is not None
    status = _STATUSES[row.status]
    outcome: Mapping[str, Any] | None = row.output
    problem = outcome and outcome.get("problem")
    if status == "failed":
        problem = _problem(row, max_tries)
    elif problem:
        status = "failed"
    return Job(
        request=JobRequest.from_dict(row.input["args"][0]),
        status=status,
        created=row.created_at / 1000,
        started=row.dequeued_at and row.dequeued_at / 1000,
        ended=row.completed_at and row.completed_at / 1000,
        outcome=None if problem else outcome,
        problem=problem,
    )


def _problem(row: WorkflowStatus, max_tries: int) -> dict[str, Any]:
    """Say why a job has no outcome: it was given up, or it is DBOS that failed."""
    if row.status == "ERROR":
        logger.error("job %s failed in the engine: %s", row.workflow_id, row.error)
        message = "The service failed; its log has the reason under the id of this job."
        return ServiceError("internal", message, retryable=True).to_dict()
    message = (
        f"The job was given up: {max_tries} times it was begun, and each time the service "
        "ended before the job did."
    )
    return ServiceError("given_up", message, tries=max_tries).to_dict()


def to_delivery(row: WorkflowStatus) -> DeliveryState:
    """Return the attempt that a row keeps."""
    assert row.input is not None
    delivery = Delivery.from_dict(row.input["args"][0])
    if not row.output:
        return DeliveryState(delivery, is_running=row.status == "PENDING")
    sent = Delivery.from_dict(row.output["delivery"])
    return DeliveryState(sent, attempt=Attempt(**row.output["attempt"]))


def positions_of(rows: Sequence[WorkflowStatus]) -> dict[str, int]:
    """Return for each job that waits which one in the queue it is; the first is 1."""
    # SQLite's times are whole seconds; within one, DBOS goes by the id.
    in_order = sorted((row.created_at or 0, row.workflow_id) for row in rows)
    return {job_id: number for number, (_, job_id) in enumerate(in_order, start=1)}

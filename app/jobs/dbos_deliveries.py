"""Deliveries in DBOS: each attempt is a workflow of its own, which is taken up when it is due."""

from __future__ import annotations

import time

from dbos import DBOS, WorkflowStatus

from app.jobs.delivery import Attempt, Delivery, DeliveryState

# One version for good, for what is enqueued by one process may be taken up by a later one.
APPLICATION_VERSION = "1"
DELIVERIES = "deliveries"
DELIVERY = "delivery"

# Receivers that do not answer hold up no more than so many at once.
DELIVERIES_AT_ONCE = 8


def enqueue_delivery(delivery: Delivery) -> None:
    """Put an attempt on its way, unless it is already."""
    DBOS.enqueue_workflow_with_options(
        {
            "workflow_name": DELIVERY,
            "queue_name": DELIVERIES,
            "workflow_id": delivery.id,
            "app_version": APPLICATION_VERSION,
            "delay_seconds": max(delivery.due - time.time(), 0.0),
        },
        delivery.to_dict(),
    )


def deliveries_of(job_id: str) -> list[DeliveryState]:
    """Return the attempts of a job's deliveries, in their order."""
    rows = DBOS.list_workflows(name=DELIVERY, workflow_id_prefix=f"{job_id}.")
    states = [_to_delivery(row) for row in rows]
    return sorted(states, key=lambda state: (state.delivery.number, state.delivery.attempt))


def _to_delivery(row: WorkflowStatus) -> DeliveryState:
    assert row.input is not None
    delivery = Delivery.from_dict(row.input["args"][0])
    if not row.output:
        return DeliveryState(delivery, is_running=row.status == "PENDING")
    sent = Delivery.from_dict(row.output["delivery"])
    return DeliveryState(sent, attempt=Attempt(**row.output["attempt"]))

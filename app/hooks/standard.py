"""Deliveries of Standard Webhooks: whoever can sign names a source and a destination, as a client of /jobs does."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from app.hooks.receiving import Ignored
from app.jobs.orders import JobOrder, read_order

# What of a delivery counts; a registry says more than that.
_MEMBERS = ("source", "destination", "overwrite", "set")


# Of nobody but `hook-test`.
TEST_TYPE = "hook.test"


def sample() -> dict[str, Any]:
    """Return a delivery to try the hook out with, which asks for nothing."""
    return {"type": TEST_TYPE, "timestamp": "2026-11-25T00:00:00Z", "data": {}}


def read_delivery(said: Mapping[str, Any]) -> JobOrder:
    """Return what a delivery asks for: its members stand in "data", or beside "type".

    Raises:
        Ignored: it is a test.
        ServiceError: it names no source, or something that cannot be.
    """
    if said.get("type") == TEST_TYPE:
        raise Ignored("It is a test, and has arrived.")
    data = said.get("data")
    given = data if isinstance(data, dict) else said
    return read_order({name: given[name] for name in _MEMBERS if name in given})


def job_id_of(delivery_id: str) -> str:
    """Return the id of the job that a delivery is, the same however often it comes."""
    return hashlib.sha256(f"standard\n{delivery_id}".encode()).hexdigest()[:32]

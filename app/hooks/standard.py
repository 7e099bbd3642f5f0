"""Deliveries of Standard Webhooks: whoever can sign names a source and a destination, as a client of /jobs does."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from app.jobs.orders import JobOrder, read_order

# What of a delivery counts; a registry says more than that.
_MEMBERS = ("source", "destination", "overwrite", "set")


def read_delivery(said: Mapping[str, Any]) -> JobOrder:
    """Return what a delivery asks for: its members stand in "data", or beside "type".

    Raises:
        ServiceError: it names no source, or something that cannot be.
    """
    data = said.get("data")
    given = data if isinstance(data, dict) else said
    return read_order({name: given[name] for name in _MEMBERS if name in given})


def job_id_of(delivery_id: str) -> str:
    """Return the id of the job that a delivery is, the same however often it comes."""
    return hashlib.sha256(f"standard\n{delivery_id}".encode()).hexdigest()[:32]

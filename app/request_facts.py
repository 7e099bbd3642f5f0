"""What is known of one request once it is answered: for the metrics, the log and the trace."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from app.run_facts import RunFacts

CLIENT_GONE = 499

# Asked every few seconds: while all is well that is nothing to read about, and nothing to trace.
PROBES = ("GET /livez", "GET /readyz", "GET /metrics")

# What the log and the trace repeat of a client's words, and of ours.
MAX_PATH_CHARACTERS = 256
MAX_DETAIL_CHARACTERS = 1024


@dataclass(slots=True)
class RequestFacts:
    """Filled in as the request goes on; times are those of the monotonic clock, in seconds.

    Attributes:
        route: the method and the template of the path, one of those there are, or "none".
        receiving: when the body was first asked for, where it was.
        received: when all of it had come in.
        status: 499 where the client left before it had the whole answer.
        error: what the problem says, where the answer is one.
    """

    method: str
    path: str
    route: str
    begun: float = field(default_factory=time.monotonic)
    receiving: float | None = None
    received: float | None = None
    answered: float | None = None
    ended: float | None = None
    status: int | None = None
    received_bytes: int = 0
    sent_bytes: int = 0
    error: Mapping[str, Any] | None = None
    run: RunFacts | None = None

    @property
    def error_type(self) -> str:
        return "" if self.error is None else str(self.error["error_type"])

    @property
    def seconds(self) -> float:
        return (self.ended or time.monotonic()) - self.begun

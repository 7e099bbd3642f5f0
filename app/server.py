"""The HTTP server, and how it stops: it says no at once, lets what has begun end, and then gives up the rest."""

from __future__ import annotations

import math
import socket
import time
from types import FrameType

import uvicorn

from app.admission import Admission

# For the answers to what was given up to get out.
LAST_WORDS_SECONDS = 2


class Server(uvicorn.Server):
    """Told to stop, it goes on answering, with 503 to whatever is new, until it is idle or the time is over.

    To close the port at once, as the server does by itself, would be no answer at all to those that are
    still sent here by whoever has not heard of it yet.
    """

    def __init__(
        self, config: uvicorn.Config, *, admission: Admission, grace_seconds: float
    ) -> None:
        super().__init__(config)
        self._admission = admission
        self._grace_seconds = grace_seconds
        self._deadline = math.inf

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; told so again, stop now."""
        is_first = not self._admission.is_stopping
        self._admission.stop()
        self._deadline = time.monotonic() + (self._grace_seconds if is_first else 0)

    async def on_tick(self, counter: int) -> bool:
        """Say, ten times a second, whether it is time to close."""
        is_over = time.monotonic() >= self._deadline
        if is_over or (self._admission.is_stopping and self._admission.is_idle):
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Give up what has not ended, and leave answers that are on their way what is left of the time."""
        self._admission.end()
        left = min(self._deadline - time.monotonic(), self._grace_seconds)
        self.config.timeout_graceful_shutdown = max(math.ceil(left), LAST_WORDS_SECONDS)
        await super().shutdown(sockets)

"""Who is let in, and when their run begins: so many requests, so much scratch and memory, and no more.

A request is let in before its body is read, or sent away at once: an HTTP server that waits with a
body unread does not see its client go. It holds a place until its run has ended. The run itself waits
for its turn (`turns.py`) when everything it needs is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import NoReturn

from app.claims import Claims
from app.errors import ServiceError
from app.scratch_room import Place, ScratchRoom
from app.turns import LARGE_FROM_BYTES, Limits, Turn, expected_memory_bytes, next_turn

# A body that does not say how long it is holds so much room more than it has filled.
GROWTH_BYTES = 64 * 2**20

# Large bodies leave this part of the places to small ones.
KEPT_PLACES_SHARE = 4
# How long after its time to come again a large one that found no room is expected.
CLAIM_SECONDS = 30.0

# What is told to clients before any run has shown how long one takes.
GUESSED_RUN_SECONDS = 1.0
MAX_RETRY_AFTER_SECONDS = 3600
REMEMBERED_RUNS = 50


class Admission:
    """Counts the requests that are let in and the runs that are under way."""

    def __init__(
        self,
        limits: Limits,
        *,
        max_queued: int,
        run_memory_bytes: int,
        free_bytes: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._max_queued = max_queued
        self._run_memory_bytes = run_memory_bytes
        self._clock = clock
        self._claims = Claims(clock)
        self._room = ScratchRoom(free_bytes, self._claims)
        self._number = 0
        self._waiting: dict[int, tuple[Turn, asyncio.Future[None]]] = {}
        self._running: dict[int, Turn] = {}
        self._seconds: deque[float] = deque(maxlen=REMEMBERED_RUNS)
        self.is_stopping = False
        self._end = asyncio.Event()

    @property
    def admitted(self) -> int:
        """How many requests are let in: receiving, waiting or running."""
        return len(self._room.places)

    @property
    def waiting(self) -> int:
        """How many runs wait for their turn."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """How many runs are under way."""
        return len(self._running)

    @property
    def is_idle(self) -> bool:
        return not self._room.places and not self._waiting and not self._running

    def stop(self) -> None:
        """Let nobody in any more."""
        self.is_stopping = True

    def end(self) -> None:
        """Give up what has not ended yet."""
        self.is_stopping = True
        self._end.set()

    async def given_up(self, facts: Mapping[str, object] = MappingProxyType({})) -> NoReturn:
        """Wait until all is given up.

        Args:
            facts: what the problem says beside, as it is by then.

        Raises:
            ServiceError: then, always.
        """
        await self._end.wait()
        raise _stopping("The service stopped before this was done; send it again.", **facts)

    @contextlib.contextmanager
    def place(self, declared_bytes: int | None) -> Iterator[Place]:
        """Let a request in that declares a body of this size, or None where it does not say.

        Raises:
            ServiceError: the service stops, is full, or has no room for a body of this size.
        """
        if self.is_stopping:
            raise _stopping(
                "The service is stopping and takes nothing more; send the request again."
            )
        is_large = declared_bytes is None or declared_bytes >= LARGE_FROM_BYTES
        self._refuse_too_many(is_large=is_large)
        place = Place(is_large)
        self._reserve(place, declared_bytes or 0)
        self._room.places.append(place)
        try:
            yield place
        finally:
            self._room.places.remove(place)

    def receive(self, place: Place, received: int) -> None:
        """Note how much of a body has come in.

        Raises:
            ServiceError: it is more than was declared, and there is no room for more.
        """
        place.received = received
        if received > place.reserved:
            self._reserve(place, received + GROWTH_BYTES)

    @contextlib.asynccontextmanager
    async def turn(self, size: int) -> AsyncIterator[None]:
        """Wait until a run over a file of this size may begin, and keep its place until it has ended."""
        self._number += 1
        memory_bytes = expected_memory_bytes(
            size, limits=self._limits, run_memory_bytes=self._run_memory_bytes
        )
        turn = Turn(self._number, size, memory_bytes)
        called = asyncio.get_running_loop().create_future()
        self._waiting[turn.number] = turn, called
        self._call()
        try:
            await called
            begun = self._clock()
            try:
                yield
            finally:
                self._seconds.append(self._clock() - begun)
        finally:
            self._waiting.pop(turn.number, None)
            self._running.pop(turn.number, None)
            self._call()

    def retry_after(self) -> int:
        """Return in how many seconds those who wait now will have had their turn, as far as one can say."""
        seconds = sum(self._seconds) / len(self._seconds) if self._seconds else GUESSED_RUN_SECONDS
        ahead = max(self.admitted, self.running + self.waiting)
        return max(1, min(math.ceil(seconds * ahead / self._limits.runs), MAX_RETRY_AFTER_SECONDS))

    def _call(self) -> None:
        """Begin every run whose turn it is."""
        while turn := next_turn(
            [turn for turn, _ in self._waiting.values()], self._running.values(), self._limits
        ):
            _, called = self._waiting.pop(turn.number)
            self._running[turn.number] = turn
            if not called.done():
                called.set_result(None)
            for number, (other, future) in self._waiting.items():
                if number < turn.number:
                    self._waiting[number] = replace(other, passed=other.passed + 1), future

    def _refuse_too_many(self, *, is_large: bool) -> None:
        most = self._limits.runs + self._max_queued
        large = sum(place.is_large for place in self._room.places)
        if self.admitted >= most or (is_large and large >= most - _kept_places(most)):
            message = f"The service has {self.admitted} requests to see to, and takes no more now."
            raise self._full(message)

    def _reserve(self, place: Place, size: int) -> None:
        """Promise this much of the disk to a place.

        Raises:
            ServiceError: there is not so much.
        """
        verdict = self._room.reserve(place, size)
        if verdict == "later":
            if not place.received:
                self._claims.add(size, seconds=self.retry_after() + CLAIM_SECONDS)
            raise self._full(
                f"The scratch disk has no room for {size} bytes until other requests are done."
            )
        if verdict == "never":
            message = f"The scratch disk has no room for {size} bytes."
            raise ServiceError("no_space", message, retryable=True)

    def _full(self, message: str) -> ServiceError:
        return ServiceError("queue_full", message, retryable=True, retry_after=self.retry_after())


def _kept_places(most: int) -> int:
    return max(1, most // KEPT_PLACES_SHARE) if most > 1 else 0


def _stopping(message: str, **facts: object) -> ServiceError:
    return ServiceError("stopping", message, retryable=True, retry_after=1, **facts)

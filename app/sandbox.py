"""Runs in throw-away processes, seen from the web process: start, follow, give up, and say what became of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import socket
from dataclasses import dataclass, replace
from typing import Any

from app.errors import STATUSES, RunFailed
from app.forkserver_process import ForkServerProcess
from app.run_request import DONE_STATUS, RunRequest

logger = logging.getLogger(__name__)

# As much as the end of a run's output can grow to when it is written as JSON.
MAX_LINE_BYTES = 2**17
STOP_SECONDS = 10


class Sandbox:
    """Keeps a fork server alive, and follows each run to its end."""

    def __init__(self, *, timeout_seconds: float, memory_bytes: int) -> None:
        self._timeout_seconds = timeout_seconds
        self._memory_bytes = memory_bytes
        self._starting = asyncio.Lock()
        self._server: ForkServerProcess | None = None

    @property
    def is_ready(self) -> bool:
        return self._server is not None and self._server.is_alive

    async def start(self) -> ForkServerProcess:
        """Start the fork server unless it is alive.

        Raises:
            ServiceError: it did not come up; its own words are on our standard error.
        """
        async with self._starting:
            if self._server is None or not self._server.is_alive:
                await self.stop()
                self._server = await ForkServerProcess.start(
                    timeout_seconds=self._timeout_seconds, memory_bytes=self._memory_bytes
                )
            return self._server

    async def stop(self) -> None:
        """Kill every run and end the fork server."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop()

    async def run(self, request: RunRequest, *, label: str) -> None:
        """Have one run done; its outcome then lies in its scratch folder. Cancelling this kills it.

        Args:
            request: what to do.
            label: what the log calls the run.

        Raises:
            RunFailed: a limit was reached, or the process ended without an outcome.
        """
        server = await self.start()
        end = await _follow(server.begin(request))
        if end.output:
            logger.info("run %s printed:\n%s", label, end.output)
        if end.reason or end.status != DONE_STATUS:
            failure = self._explain(end)
            logger.warning("run %s: %s", label, failure)
            raise failure

    def _explain(self, end: RunEnd) -> RunFailed:
        how = f"ended itself with status {end.status}"
        if end.status is not None and end.status < 0:
            how = f"was ended by signal {-end.status} ({signal.strsignal(-end.status)})"
        what = {
            None: how,
            "timeout": f"took longer than the {self._timeout_seconds:g} seconds it may take",
            "crashed": "said what no run says",
            "out_of_memory": f"held more than the {self._memory_bytes} bytes it may hold in memory",
        }.get(end.reason, "was lost, with the process that watched it")
        error_type = end.reason or "crashed"
        return RunFailed(
            error_type,
            f"The run {what}{end.where}.",
            retryable=STATUSES[error_type] >= 500,
            **end.step_facts(),
        )


@dataclass(frozen=True, slots=True)
class RunEnd:
    """How a run ended: by itself with a status, or by us for a reason; and the last step it began."""

    status: int | None = None
    # Until the fork server has said how, we have lost it.
    reason: str | None = "sandbox_lost"
    output: str = ""
    step: tuple[int, int, str] | None = None

    @property
    def where(self) -> str:
        if self.step is None:
            return ""
        position, count, name = self.step
        return f"; the last migration that it began was {name} ({position} of {count})"

    def step_facts(self) -> dict[str, Any]:
        """Return the members of a problem that name the migration."""
        if self.step is None:
            return {}
        return dict(zip(("position", "count", "migration"), self.step, strict=True))


async def _follow(channel: socket.socket) -> RunEnd:
    """Read what is said about a run until it has ended. When we are cancelled, so is the run."""
    reader, writer = await asyncio.open_connection(sock=channel, limit=MAX_LINE_BYTES)
    end = RunEnd()
    try:
        end = await _read_events(reader)
    finally:
        try:
            if end.status is None:
                # The channel closed, the run is killed. Its scratch may go when it is dead.
                with contextlib.suppress(OSError, asyncio.TimeoutError):
                    writer.write_eof()
                    await asyncio.wait_for(_read_events(reader), STOP_SECONDS)
        finally:
            writer.close()
    return end


async def _read_events(reader: asyncio.StreamReader) -> RunEnd:
    end = RunEnd()
    try:
        async for line in reader:
            end = _take_event(end, line)
            if end.status is not None:
                break
    except ValueError:
        # A line without an end: no event is that long.
        return replace(end, reason="crashed")
    return end


def _take_event(end: RunEnd, line: bytes) -> RunEnd:
    """Add what a line says; a line that its writer did not live to finish says nothing."""
    try:
        event = json.loads(line)
    except ValueError:
        return end
    match event:
        case {"step": [int(position), int(count), str(name)]}:
            return replace(end, step=(position, count, name))
        case {"exit": {"status": int(status), "reason": reason, "output": str(output)}}:
            return replace(end, status=status, reason=reason, output=output)
    return end

"""Runs in throw-away processes, seen from the web process: start, follow, give up, and say what became of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from app.errors import STATUSES, RunFailed, ServiceError
from app.forkserver_process import ForkServerProcess
from app.run_facts import RunFacts
from app.run_request import DONE_STATUS, RunRequest
from app.sandbox_settings import IN_FORCE, Layer, SandboxSettings
from app.settings import Settings
from app.watched_processes import MAX_PROCESSES, MAX_SCRATCH_ENTRIES

OnStep = Callable[[int, int, str], None]

logger = logging.getLogger(__name__)

# As much as the end of a run's output can grow to when it is written as JSON.
MAX_LINE_BYTES = 2**17
STOP_SECONDS = 10


class Sandbox:
    """Keeps a fork server alive, and follows each run to its end."""

    def __init__(self, settings: SandboxSettings, *, requires_layers: bool) -> None:
        self._settings = settings
        self._requires_layers = requires_layers
        self._starting: asyncio.Task[ForkServerProcess] | None = None
        self._server: ForkServerProcess | None = None

    @classmethod
    def from_settings(cls, settings: Settings, scratch_root: Path) -> Sandbox:
        """Make the sandbox of a service whose scratch folders lie in this one."""
        told = SandboxSettings(
            timeout_seconds=settings.run_timeout_seconds,
            memory_bytes=settings.run_memory_bytes,
            scratch_root=str(scratch_root),
            uid=settings.run_uid,
        )
        return cls(told, requires_layers=settings.sandbox == "required")

    @property
    def is_ready(self) -> bool:
        return self._server is not None and self._server.is_alive

    @property
    def layers(self) -> tuple[Layer, ...]:
        """What is around the runs; nothing is known while there is no fork server."""
        return self._server.layers if self._server is not None else ()

    async def start(self) -> ForkServerProcess:
        """Start the fork server unless it is alive. Cancelling this leaves the start to whoever else waits for it.

        Raises:
            ServiceError: it did not come up, and its own words are on our standard error; or a layer is missing
                that must not be.
        """
        if self._server is not None and self._server.is_alive:
            return self._server
        if self._starting is None or self._starting.done():
            self._starting = asyncio.ensure_future(self._start())
        return await asyncio.shield(self._starting)

    async def _start(self) -> ForkServerProcess:
        await self._end()
        server = await ForkServerProcess.start(self._settings)
        self._server = server
        await self._look_at_layers()
        return server

    async def _look_at_layers(self) -> None:
        missing = [layer for layer in self.layers if layer.state != IN_FORCE]
        if missing and self._requires_layers:
            await self._end()
            lacking = ", ".join(f"{layer.name} ({layer})" for layer in missing)
            raise ServiceError("sandbox_lost", f"The sandbox lacks {lacking}.", retryable=True)
        for layer in missing:
            logger.warning("The sandbox lacks a layer: %s (%s)", layer.name, layer)

    async def stop(self) -> None:
        """Kill every run and end the fork server."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        await self._end()

    async def _end(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await server.stop()

    async def run(
        self,
        request: RunRequest,
        *,
        label: str,
        on_step: OnStep = lambda *_: None,
        facts: RunFacts | None = None,
        source: int | None = None,
    ) -> None:
        """Have one run done; its outcome then lies in its scratch folder. Cancelling this kills it.

        Args:
            request: what to do.
            label: what the log calls the run.
            on_step: is told position, count and name of each migration that begins.
            facts: learn how much memory it held.
            source: the checkpoint as an open file, where it is not the upload in the scratch folder.

        Raises:
            RunFailed: a limit was reached, or the process ended without an outcome.
        """
        server = await self.start()
        following = _Following(on_step)
        try:
            end = await following.to_the_end(server.begin(request, source))
        except asyncio.CancelledError:
            logger.warning("run %s: The run was cancelled%s.", label, following.end.where)
            raise
        if facts is not None:
            facts.peak_bytes = end.peak_bytes
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
        memory_bytes = self._settings.memory_bytes
        what = {
            None: how,
            "timeout": f"took longer than the {self._settings.timeout_seconds:g} seconds it may take",
            "crashed": "said what no run says",
            "out_of_memory": f"held more than the {memory_bytes} bytes it may hold in memory",
            "too_much_output": f"wrote more than the {memory_bytes} bytes, or {MAX_SCRATCH_ENTRIES} files, it may",
            "too_many_processes": f"had more than the {MAX_PROCESSES} processes it may have",
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
    # The most that was seen of it, beside what it inherited; a short run may never have been looked at.
    peak_bytes: int = 0

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


class _Following:
    """Reads what is said about one run; `end` is what has been said so far."""

    def __init__(self, on_step: OnStep) -> None:
        self.end = RunEnd()
        self._on_step = on_step

    async def to_the_end(self, channel: socket.socket) -> RunEnd:
        """Read until the run has ended. When this is cancelled, so is the run."""
        reader, writer = await asyncio.open_connection(sock=channel, limit=MAX_LINE_BYTES)
        try:
            await self._read_events(reader)
        finally:
            try:
                if self.end.status is None:
                    # The channel closed, the run is killed. Its scratch may go when it is dead.
                    with contextlib.suppress(OSError, asyncio.TimeoutError):
                        writer.write_eof()
                        said = self.end
                        await asyncio.wait_for(self._read_events(reader), STOP_SECONDS)
                        self.end = replace(said, step=self.end.step)
            finally:
                writer.close()
        return self.end

    async def _read_events(self, reader: asyncio.StreamReader) -> None:
        try:
            async for line in reader:
                before, self.end = self.end, _take_event(self.end, line)
                if self.end.step and self.end.step != before.step:
                    self._on_step(*self.end.step)
                if self.end.status is not None:
                    break
        except ValueError:
            # A line without an end: no event is that long.
            self.end = replace(self.end, reason="crashed")


def _take_event(end: RunEnd, line: bytes) -> RunEnd:
    """Add what a line says; a line that its writer did not live to finish says nothing."""
    try:
        event = json.loads(line)
    except ValueError:
        return end
    match event:
        case {"step": [int(position), int(count), str(name)]}:
            return replace(end, step=(position, count, name))
        case {
            "exit": {
                "status": int(status),
                "reason": reason,
                "peak_bytes": int(peak_bytes),
                "output": str(output),
            }
        }:
            return replace(end, status=status, reason=reason, peak_bytes=peak_bytes, output=output)
    return end

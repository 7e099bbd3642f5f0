"""The fork server, seen from the web process: started with nothing of ours that it need not have."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from dataclasses import asdict
from pathlib import Path

from app.errors import ServiceError
from app.run_request import RunRequest
from app.sandbox_settings import Layer, SandboxSettings

# Torch comes from a disk that may be slow the first time.
START_SECONDS = 120
STOP_SECONDS = 5

# All that a run sees of our environment: no secrets.
_PASSED_ON = ("LD_LIBRARY_PATH", "PATH", "PYTHONDONTWRITEBYTECODE")
# One hash seed and one thread, so that equal input gives equal output.
_SET = {
    "LC_ALL": "C.UTF-8",
    "MKL_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONFAULTHANDLER": "1",
    "PYTHONHASHSEED": "0",
    # The working directory of a run is its scratch: no place to import from.
    "PYTHONSAFEPATH": "1",
    "PYTHONUNBUFFERED": "1",
}


class ForkServerProcess:
    def __init__(self, process: Process, control: socket.socket) -> None:
        self._process = process
        self._control = control
        # Which layers are around its runs; none are known before it is ready.
        self.layers: tuple[Layer, ...] = ()

    @classmethod
    async def start(cls, settings: SandboxSettings) -> ForkServerProcess:
        """Start one and wait until it has loaded its libraries.

        Raises:
            ServiceError: it ended instead; its own words are on our standard error.
        """
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "app.forkserver"),
                *(str(theirs.fileno()), json.dumps(asdict(settings))),
                stdin=DEVNULL,
                stdout=DEVNULL,
                env=environment(),
                cwd="/",
                pass_fds=[theirs.fileno()],
                # Ctrl-C in a terminal is for the web process, which ends us in its own time.
                start_new_session=True,
            )
        server = cls(process, ours)
        try:
            if await server._hear_ready():
                return server
        except asyncio.CancelledError:
            # It has no runs yet.
            process.kill()
            await server.stop()
            raise
        await server.stop()
        raise ServiceError("sandbox_lost", "The fork server did not start.", retryable=True)

    @property
    def is_alive(self) -> bool:
        return self._process.returncode is None

    def begin(self, request: RunRequest, source: int | None = None) -> socket.socket:
        """Send a run, with the open file that it is about where that is not its upload; return our end of its channel.

        Raises:
            ServiceError: the fork server has died.
        """
        ours, theirs = socket.socketpair()
        sources = [] if source is None else [source]
        with theirs:
            try:
                ours.sendall(json.dumps(asdict(request)).encode("ascii"))
                socket.send_fds(self._control, [b"+"], [theirs.fileno(), *sources])
            except OSError as error:
                ours.close()
                message = "The fork server has died; the next run starts another."
                raise ServiceError("sandbox_lost", message, retryable=True) from error
        return ours

    async def stop(self) -> None:
        """Have it kill its runs and end; if it does not, kill it, and they die with it."""
        self._control.close()
        try:
            await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
        except asyncio.TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def _hear_ready(self) -> bool:
        try:
            line = await asyncio.wait_for(self._read_line(), START_SECONDS)
            self.layers = tuple(Layer(**layer) for layer in json.loads(line)["layers"])
        except (OSError, asyncio.TimeoutError, ValueError):
            return False
        return True

    async def _read_line(self) -> bytes:
        loop = asyncio.get_running_loop()
        line = b""
        while not line.endswith(b"\n"):
            data = await loop.sock_recv(self._control, 4096)
            if not data:
                break
            line += data
        return line


def environment() -> dict[str, str]:
    """Return all that the fork server and its runs see of the environment."""
    # Where this package lies, whatever folder the service was started in; and where ours is found.
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return {**passed_on, **_SET, "PYTHONPATH": os.pathsep.join(paths)}

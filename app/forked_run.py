"""One child of the fork server: forked, confined, put to work, watched, killed and reaped."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from app.confinement import confine
from app.linux import held_bytes
from app.run_request import DONE_STATUS, RunRequest

# Of what a run prints the end is kept: that is where a crash says what it was.
OUTPUT_BYTES = 8192
# As much as a pipe holds.
PIPE_BYTES = 2**16
MAX_REQUEST_BYTES = 2**16


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run may take; the memory counts from what it inherits."""

    timeout_seconds: float
    memory_bytes: int
    inherited_bytes: int


@dataclass(slots=True)
class ForkedRun:
    """A child that is alive, or dead and not reaped yet: so long its pid is its own."""

    pid: int
    channel: socket.socket
    output_descriptor: int
    limits: Limits
    begun: float = field(default_factory=time.monotonic)
    reason: str | None = None
    output: bytearray = field(default_factory=bytearray)

    @classmethod
    def start(cls, channel: socket.socket, limits: Limits) -> ForkedRun:
        """Fork a child for the request that lies on the channel.

        Raises:
            OSError: there is no process, or no descriptor, to be had.
            ValueError: what lies there is no request.
        """
        request = RunRequest(**json.loads(channel.recv(MAX_REQUEST_BYTES)))
        parent_pid = os.getpid()
        read_end, write_end = os.pipe()
        try:
            pid = os.fork()
        except OSError:
            os.close(read_end)
            os.close(write_end)
            raise
        if pid == 0:
            _be_child(request, channel, write_end, parent_pid, limits)
        os.close(write_end)
        os.set_blocking(read_end, False)
        return cls(pid, channel, read_end, limits)

    def kill(self, reason: str | None = None) -> None:
        self.reason = self.reason or reason
        os.kill(self.pid, signal.SIGKILL)
        self._kill_group()

    def hold_to_limits(self) -> None:
        if time.monotonic() - self.begun > self.limits.timeout_seconds:
            self.kill("timeout")
        elif held_bytes(self.pid) - self.limits.inherited_bytes > self.limits.memory_bytes:
            self.kill("out_of_memory")

    def read_output(self) -> bool:
        """Keep the end of what was printed; False when there will never be more."""
        try:
            data = os.read(self.output_descriptor, PIPE_BYTES)
        except BlockingIOError:
            return True
        self.output += data
        del self.output[:-OUTPUT_BYTES]
        return bool(data)

    def has_ended(self) -> bool:
        how = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return how is not None

    def finish(self) -> None:
        """Take what the child started down with it, reap it, and say how it ended."""
        self._kill_group()
        _, status = os.waitpid(self.pid, 0)
        self.read_output()
        facts = {
            "status": os.waitstatus_to_exitcode(status),
            "reason": self.reason,
            "output": self.output.decode("utf-8", "replace"),
        }
        # The child may have been killed in the middle of a line.
        line = b"\n" + json.dumps({"exit": facts}).encode("ascii") + b"\n"
        with contextlib.suppress(OSError):
            self.channel.send(line, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        self.channel.close()
        os.close(self.output_descriptor)

    def _kill_group(self) -> None:
        # A child that has not come to its own session yet has no group, and no children either.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def _be_child(
    request: RunRequest, channel: socket.socket, output: int, parent_pid: int, limits: Limits
) -> NoReturn:
    """Run one request in this process, which ends with it and never gets back to the loop."""

    def on_step(position: int, count: int, name: str) -> None:
        channel.sendall(json.dumps({"step": [position, count, name]}).encode("ascii") + b"\n")

    status = 1
    try:
        confine(
            Path(request.scratch_folder),
            parent_pid=parent_pid,
            output=output,
            keep=channel.fileno(),
            memory_bytes=limits.memory_bytes,
        )
        # Not before there is a process for it: the web process imports this module, too.
        from app.child import run

        run(request, on_step)
        status = DONE_STATUS
    except BaseException:
        # SystemExit among them: a migration that ends the process has no result.
        traceback.print_exc()
    finally:
        # No finalizer of what this process inherited may run here a second time.
        os._exit(status)

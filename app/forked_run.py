"""One run of the fork server's: given to a child, watched, held to its limits, killed and reaped."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path

from app.confinement import ROOM_BYTES
from app.run_request import UPLOAD_NAME, RunRequest
from app.waiting_child import WaitingChild
from app.watched_processes import (
    MAX_PROCESSES,
    family,
    held_bytes,
    held_share_bytes,
    scratch_bytes,
)

# Of what a run prints the end is kept: that is where a crash says what it was.
OUTPUT_BYTES = 8192
# As much as a pipe holds.
PIPE_BYTES = 2**16
MAX_REQUEST_BYTES = 2**16
# To look through a scratch folder takes longer than to look at a process.
SCRATCH_LOOK_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run may take, its children included; the memory counts from what each inherits."""

    timeout_seconds: float
    memory_bytes: int
    inherited_bytes: int

    def written_bytes(self, source_bytes: int) -> int:
        """Return how much may lie in the scratch folder, the source among it."""
        return source_bytes + self.memory_bytes + ROOM_BYTES


@dataclass(slots=True)
class ForkedRun:
    """A child that is alive, or dead and not reaped yet: so long its pid is its own."""

    pid: int
    channel: socket.socket
    output_descriptor: int
    limits: Limits
    scratch_folder: Path
    written_bytes: int
    begun: float = field(default_factory=time.monotonic)
    last_scratch_look: float = 0.0
    reason: str | None = None
    peak_bytes: int = 0
    output: bytearray = field(default_factory=bytearray)

    @classmethod
    def start(
        cls, child: WaitingChild, channel: socket.socket, source: int | None, limits: Limits
    ) -> ForkedRun:
        """Give the request that lies on the channel to a child that waits for one.

        The checkpoint is this open file, or the upload in the scratch folder.

        Raises:
            OSError: the child is dead.
            ValueError: what lies there is no request.
        """
        request = RunRequest(**json.loads(channel.recv(MAX_REQUEST_BYTES)))
        folder = Path(request.scratch_folder)
        written_bytes = limits.written_bytes(os.stat(source or folder / UPLOAD_NAME).st_size)
        child.give(request, channel=channel, source=source, written_bytes=written_bytes)
        return cls(child.pid, channel, child.output_descriptor, limits, folder, written_bytes)

    def kill(self, reason: str | None = None) -> None:
        self.reason = self.reason or reason
        os.kill(self.pid, signal.SIGKILL)
        self._kill_group()

    def hold_to_limits(self) -> None:
        now = time.monotonic()
        pids = family(self.pid)
        if now - self.begun > self.limits.timeout_seconds:
            self.kill("timeout")
        elif len(pids) > MAX_PROCESSES:
            self.kill("too_many_processes")
        elif self._holds_too_much(pids):
            self.kill("out_of_memory")
        elif now - max(self.begun, self.last_scratch_look) > SCRATCH_LOOK_SECONDS:
            self.last_scratch_look = now
            written = scratch_bytes(self.scratch_folder, pids)
            if written is None or written > self.written_bytes:
                self.kill("too_much_output")

    def _holds_too_much(self, pids: set[int]) -> bool:
        inherited, most = self.limits.inherited_bytes, self.limits.memory_bytes
        held = sum(max(held_bytes(pid) - inherited, 0) for pid in pids)
        self.peak_bytes = max(self.peak_bytes, held)
        if held <= most:
            return False
        if len(pids) == 1:
            return True
        # Children share pages with their parents: only now is it worth while to count those once. What they all
        # inherit they share with the fork server, too.
        shared = inherited * len(pids) // (len(pids) + 1)
        return sum(map(held_share_bytes, pids)) - shared > most

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
            "peak_bytes": self.peak_bytes,
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

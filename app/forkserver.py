"""The process that forks one child per run and holds it to its limits; it never computes.

The web process starts it with one socket. Each run arrives there as a descriptor: the run's
channel, on which its request lies already. On the channel come back, as lines of JSON, {"step":
[position, count, name]} from the child and, last of all, {"exit": {"status", "reason", "output"}}
from here. When the other side closes its end of a channel, the run is killed; when it closes the
socket, every run is, and this process ends.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import pkgutil
import select
import signal
import socket
import sys
import time
import traceback

from app.forked_run import PIPE_BYTES, ForkedRun, Limits
from app.linux import adopt_orphans, children, held_bytes

# A run may get this much further once a limit is passed.
POLL_SECONDS = 0.02
# The one byte that says: loaded, send runs.
READY = b"+"


class ForkServer:
    def __init__(self, control: socket.socket, limits: Limits) -> None:
        self._control = control
        self._limits = limits
        self._runs: dict[int, ForkedRun] = {}
        self._next_look = 0.0
        self._death = _wake_on_death()
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._poll.register(self._death, select.POLLIN)

    def serve(self) -> None:
        """Serve until the other side closes the socket; then leave no process behind."""
        while True:
            timeout = POLL_SECONDS * 1000 if self._runs else None
            ready = {descriptor for descriptor, _ in self._poll.poll(timeout)}
            if self._death in ready:
                os.read(self._death, PIPE_BYTES)
            self._attend(ready)
            if self._control.fileno() in ready and not self._accept():
                break
        for run in self._runs.values():
            run.kill()
            run.finish()
        self._kill_orphans()

    def _attend(self, ready: set[int]) -> None:
        for run in list(self._runs.values()):
            if run.output_descriptor in ready and not run.read_output():
                self._poll.unregister(run.output_descriptor)
            if run.channel.fileno() in ready:
                self._poll.unregister(run.channel)
                run.kill("cancelled")
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + POLL_SECONDS
            for run in self._runs.values():
                run.hold_to_limits()
        for run in [run for run in self._runs.values() if run.has_ended()]:
            self._forget(run)
        self._kill_orphans()

    def _accept(self) -> bool:
        """Start the run that has arrived; False when there will be no more."""
        data, descriptors, _, _ = socket.recv_fds(self._control, 1, 1, socket.MSG_CMSG_CLOEXEC)
        if not data:
            return False
        channel = socket.socket(fileno=descriptors[0])
        try:
            run = ForkedRun.start(channel, self._limits)
        except (OSError, ValueError):
            # The closed channel says that the run never was.
            traceback.print_exc()
            channel.close()
            return True
        self._runs[run.pid] = run
        self._poll.register(run.channel, select.POLLIN)
        self._poll.register(run.output_descriptor, select.POLLIN)
        return True

    def _forget(self, run: ForkedRun) -> None:
        del self._runs[run.pid]
        for descriptor in (run.channel.fileno(), run.output_descriptor):
            with contextlib.suppress(KeyError):
                self._poll.unregister(descriptor)
        run.finish()

    def _kill_orphans(self) -> None:
        """End what a migration has started, and left behind in a session of its own."""
        for pid in children() - self._runs.keys():
            os.kill(pid, signal.SIGKILL)
            # One that is not dead yet wakes us when it is.
            os.waitpid(pid, os.WNOHANG)


def _wake_on_death() -> int:
    """Return a descriptor that becomes readable when a child has died."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda _signal, _frame: None)
    return read_end


def _load_libraries() -> None:
    """Load what every run needs, so that no run loads it again; and use none of it.

    A thread pool would not survive the fork, and the first computation would start one.
    """
    import torch

    import app.child  # noqa: F401
    import migrate_ckpt

    for module in pkgutil.walk_packages(migrate_ckpt.__path__, "migrate_ckpt."):
        importlib.import_module(module.name)
    torch.set_num_threads(1)
    gc.collect()
    # What is here stays: a collection in a child need not touch, and so copy, its pages.
    gc.freeze()


def main() -> None:
    descriptor, timeout_seconds, memory_bytes = sys.argv[1:]
    control = socket.socket(fileno=int(descriptor))
    adopt_orphans()
    _load_libraries()
    limits = Limits(float(timeout_seconds), int(memory_bytes), held_bytes(os.getpid()))
    control.send(READY)
    ForkServer(control, limits).serve()


if __name__ == "__main__":
    main()

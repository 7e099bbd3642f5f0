"""The process that forks one child per run and holds it to its limits; it never computes.

The web process starts it with one socket. Each run arrives there as a descriptor: the run's
channel, on which its request lies already. On the channel come back, as lines of JSON, {"step":
[position, count, name]} from the child and, last of all, {"exit": {"status", "reason", "peak_bytes", "output"}}
from here. When the other side closes its end of a channel, the run is killed; when it closes the
socket, every run is, and this process ends. The first it says on the socket itself is a line, too:
that it is ready, and which layers are around the runs.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import sys
import time
import traceback
from dataclasses import asdict

from app.confinement import Confinement
from app.forked_run import PIPE_BYTES, ForkedRun, Limits
from app.huge_pages import gather_into_huge_pages
from app.layers import raise_layers
from app.linux import adopt_orphans
from app.sandbox_settings import Layer, SandboxSettings
from app.waiting_child import WaitingChild
from app.watched_processes import children, held_bytes

# A run may get this much further once a limit is passed.
POLL_SECONDS = 0.02


class ForkServer:
    def __init__(self, control: socket.socket, limits: Limits, confinement: Confinement) -> None:
        self._control = control
        self._limits = limits
        self._confinement = confinement
        self._runs: dict[int, ForkedRun] = {}
        # Forked ahead of the next run, while there is none.
        self._spare: WaitingChild | None = None
        self._next_look = 0.0
        self._death = _wake_on_death()
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._poll.register(self._death, select.POLLIN)

    def serve(self) -> None:
        """Serve until the other side closes the socket; then leave no process behind."""
        self._prepare()
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
        if self._spare is not None:
            self._spare.end()
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
        ended = [run for run in self._runs.values() if run.has_ended()]
        for run in ended:
            self._forget(run)
        self._kill_orphans()
        if ended:
            self._prepare()

    def _prepare(self) -> None:
        """Fork the child for the next run ahead, unless others run: then processor time is short."""
        if self._spare is not None and self._spare.has_died():
            self._take_spare()
        if self._spare is None and not self._runs:
            # The next run tells whoever waits for it that there is no process to be had.
            with contextlib.suppress(OSError):
                self._spare = WaitingChild.fork(self._confinement, is_early=True)

    def _take_spare(self) -> WaitingChild | None:
        spare, self._spare = self._spare, None
        if spare is not None and spare.has_died():
            print("The child that waited for a run has died.", spare.end(), file=sys.stderr)
            return None
        return spare

    def _accept(self) -> bool:
        """Start the run that has arrived; False when there will be no more."""
        data, descriptors, _, _ = socket.recv_fds(self._control, 1, 2, socket.MSG_CMSG_CLOEXEC)
        if not data:
            return False
        channel = socket.socket(fileno=descriptors[0])
        source = descriptors[1] if len(descriptors) > 1 else None
        try:
            run = self._start(channel, source)
        except (OSError, ValueError):
            # The closed channel says that the run never was.
            traceback.print_exc()
            channel.close()
            return True
        finally:
            if source is not None:
                os.close(source)
        self._runs[run.pid] = run
        self._poll.register(run.channel, select.POLLIN)
        self._poll.register(run.output_descriptor, select.POLLIN)
        return True

    def _start(self, channel: socket.socket, source: int | None) -> ForkedRun:
        child = self._take_spare() or WaitingChild.fork(self._confinement, is_early=False)
        try:
            return ForkedRun.start(child, channel, source, self._limits)
        except BaseException:
            child.end()
            raise

    def _forget(self, run: ForkedRun) -> None:
        del self._runs[run.pid]
        for descriptor in (run.channel.fileno(), run.output_descriptor):
            with contextlib.suppress(KeyError):
                self._poll.unregister(descriptor)
        run.finish()

    def _kill_orphans(self) -> None:
        """End what a migration has started, and left behind in a session of its own."""
        ours = {*self._runs, *(() if self._spare is None else (self._spare.pid,))}
        for pid in children(os.getpid()) - ours:
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

    import app.child
    import app.warm_up  # noqa: F401
    import migrate_ckpt

    for module in pkgutil.walk_packages(migrate_ckpt.__path__, "migrate_ckpt."):
        importlib.import_module(module.name)
    torch.set_num_threads(1)
    gc.collect()
    # What is here stays: a collection in a child need not touch, and so copy, its pages.
    gc.freeze()
    gather_into_huge_pages()


def main() -> None:
    descriptor, text = sys.argv[1:]
    control = socket.socket(fileno=int(descriptor))
    settings = SandboxSettings(**json.loads(text))
    adopt_orphans()
    _load_libraries()
    confinement, layers = raise_layers(settings)
    limits = Limits(settings.timeout_seconds, settings.memory_bytes, held_bytes(os.getpid()))
    control.sendall(_ready_line(layers))
    ForkServer(control, limits, confinement).serve()


def _ready_line(layers: tuple[Layer, ...]) -> bytes:
    return json.dumps({"layers": [asdict(layer) for layer in layers]}).encode("ascii") + b"\n"


if __name__ == "__main__":
    main()

"""A child of the fork server that waits for its run: forked, and where there is time, warm already.

The first run in a process is slower than the second by two thirds: it touches pages that are still its parent's, and
code that is mapped nowhere yet. So a child that has been forked ahead migrates a checkpoint of its own first. It is
given one run, and ends with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from app.confinement import Confinement, confine, detach
from app.linux import call_this_process
from app.run_request import DONE_STATUS, RunRequest

# What `ps` shows, of 15 bytes at most.
WAITING_NAME = "migrate-waits"
RUNNING_NAME = "migrate-runs"

# A request, of 64 KiB at most, and a little.
_MAX_ORDER_BYTES = 2**17
# A run that comes sooner than this, as one of a queue does, is not to wait until the child is warm.
_COLD_SECONDS = 0.005
_THREADS_SECONDS = 1.0


@dataclass(slots=True)
class WaitingChild:
    """What the fork server has of it."""

    pid: int
    output_descriptor: int
    orders: socket.socket

    @classmethod
    def fork(cls, confinement: Confinement, *, is_early: bool) -> WaitingChild:
        """Fork a child; one that comes early warms up before it waits.

        Raises:
            OSError: there is no process, or no descriptor, to be had.
        """
        parent_pid = os.getpid()
        with contextlib.ExitStack() as on_failure:
            read_end, write_end = os.pipe()
            on_failure.callback(os.close, read_end)
            on_failure.callback(os.close, write_end)
            ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
            on_failure.enter_context(ours)
            on_failure.enter_context(theirs)
            pid = confinement.fork()
            on_failure.pop_all()
        if pid == 0:
            _be_child(theirs, write_end, parent_pid, confinement, is_early=is_early)
        os.close(write_end)
        theirs.close()
        os.set_blocking(read_end, False)
        return cls(pid, read_end, ours)

    def give(
        self,
        request: RunRequest,
        *,
        channel: socket.socket,
        source: int | None,
        written_bytes: int,
    ) -> None:
        """Have it do this, say on the channel how far it is, and write no larger file than so.

        Raises:
            OSError: it is dead.
        """
        descriptors = [channel.fileno(), *([] if source is None else [source])]
        order = json.dumps({"request": asdict(request), "written_bytes": written_bytes})
        socket.send_fds(self.orders, [order.encode("ascii")], descriptors, socket.MSG_NOSIGNAL)
        self.orders.close()

    def has_died(self) -> bool:
        how = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return how is not None

    def end(self) -> str:
        """Kill and reap it, which has no run; return what it has printed."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.orders.close()
        with open(self.output_descriptor, "rb") as output:
            return (output.read(_MAX_ORDER_BYTES) or b"").decode("utf-8", "replace")


def _be_child(
    orders: socket.socket,
    output: int,
    parent_pid: int,
    confinement: Confinement,
    *,
    is_early: bool,
) -> NoReturn:
    """Wait for one run and do it in this process, which ends with it and never gets back to the loop."""
    status = 1
    try:
        call_this_process(WAITING_NAME)
        detach(confinement, parent_pid=parent_pid, output=output, keep=[orders.fileno()])
        if is_early and not select.select([orders], [], [], _COLD_SECONDS)[0]:
            _warm_up()
        order, descriptors, _, _ = socket.recv_fds(
            orders, _MAX_ORDER_BYTES, 2, socket.MSG_CMSG_CLOEXEC
        )
        orders.close()
        # Without one the fork server has ended, or needs this child no more.
        if order:
            call_this_process(RUNNING_NAME)
            _run(json.loads(order), descriptors, parent_pid, confinement)
            status = DONE_STATUS
    except BaseException:
        # SystemExit among them: a migration that ends the process has no result.
        traceback.print_exc()
    finally:
        # No finalizer of what this process inherited may run here a second time.
        os._exit(status)


def _warm_up() -> None:
    from app.warm_up import migrate_something

    migrate_something()
    # A thread that is still there would be outside of the layers that this one is about to put on.
    deadline = time.monotonic() + _THREADS_SECONDS
    while len(os.listdir("/proc/self/task")) > 1:
        if time.monotonic() > deadline:
            raise RuntimeError("a thread of the warm-up does not end")
        time.sleep(0.001)


def _run(
    order: dict[str, Any], descriptors: list[int], parent_pid: int, confinement: Confinement
) -> None:
    channel = socket.socket(fileno=descriptors[0])
    source = descriptors[1] if len(descriptors) > 1 else None
    request = RunRequest(**order["request"])

    def on_step(position: int, count: int, name: str) -> None:
        channel.sendall(json.dumps({"step": [position, count, name]}).encode("ascii") + b"\n")

    confine(
        confinement,
        Path(request.scratch_folder),
        migrations_folder=request.migrations_folder,
        parent_pid=parent_pid,
        written_bytes=order["written_bytes"],
    )
    # Not before there is a process for it: the web process imports this module, too.
    from app.child import run

    run(request, on_step, source)

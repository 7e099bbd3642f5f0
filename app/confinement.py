"""What a child gives up before it runs anything: its parent's session, descriptors and output."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import tempfile
from pathlib import Path

from app.linux import die_with
from app.run_request import UPLOAD_NAME

# What a run may write in one file beside its source and what it holds in memory: metadata, padding.
_ROOM_BYTES = 64 * 2**20


def confine(
    scratch_folder: Path, *, parent_pid: int, output: int, keep: int, memory_bytes: int
) -> None:
    """Make this process fit to run a migration in.

    Args:
        scratch_folder: becomes the working directory, and the place for temporary files.
        parent_pid: whose death is this process's death too.
        output: the descriptor that everything printed goes to.
        keep: the one other descriptor that stays open.
        memory_bytes: what the run may hold; no file may outgrow it and the source together.
    """
    os.setsid()
    die_with(parent_pid)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _keep_descriptors(output, keep)
    os.chdir(scratch_folder)
    os.environ.update(HOME=str(scratch_folder), TMPDIR=str(scratch_folder))
    tempfile.tempdir = None
    # No file with everybody's weights in it where a crash happens to be.
    _limit(resource.RLIMIT_CORE, 0)
    source_bytes = (scratch_folder / UPLOAD_NAME).stat().st_size
    _limit(resource.RLIMIT_FSIZE, source_bytes + memory_bytes + _ROOM_BYTES)


def _keep_descriptors(output: int, keep: int) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor > 2 and descriptor != keep:
            # The one that listed the folder is closed already.
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _limit(kind: int, most: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(kind, (most, most))

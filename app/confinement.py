"""What a child gives up before it runs anything: rights, files, system calls, its parent's session and descriptors."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import app
import migrate_ckpt
from app.landlock import READ, READ_AND_WRITE, has_signal_scope, restrict_files
from app.linux import die_with, gain_no_privileges, own_proc_files
from app.privileges import OwnProcesses, become, drop_capabilities
from app.run_request import UPLOAD_NAME
from app.system_calls import Architecture, restrict_system_calls

# What a run may write beside its source and what it holds in memory: metadata, padding.
ROOM_BYTES = 64 * 2**20

# What the interpreter and its libraries look at while they run, where there is such a thing.
_SYSTEM_PATHS = (
    *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache"),
    *("/etc/localtime", "/usr/share/zoneinfo", "/dev/random", "/dev/urandom", "/dev/zero"),
    *("/proc/cpuinfo", "/proc/meminfo", "/proc/sys/vm/overcommit_memory", "/sys/devices/system"),
)


@dataclass(frozen=True, slots=True)
class Confinement:
    """The layers around a run that this machine has; `layers.py` finds them out.

    Attributes:
        uid: the user that a run becomes, or None where it stays who it is.
        landlock_abi: 0 where files cannot be restricted.
        architecture: None where system calls cannot.
        own_processes: None where a run sees the processes of the machine.
        readable: descriptors of what every run may read.
    """

    uid: int | None = None
    landlock_abi: int = 0
    architecture: Architecture | None = None
    own_processes: OwnProcesses | None = None
    readable: tuple[int, ...] = ()

    @property
    def has_signal_scope(self) -> bool:
        """Whether signals are held back by another layer than the filter of system calls."""
        return self.own_processes is not None or has_signal_scope(self.landlock_abi)

    def fork(self) -> int:
        """Fork a child, among processes of its own where there are such; return its pid, or 0 in it.

        Raises:
            OSError: there is no process to be had.
        """
        return os.fork() if self.own_processes is None else self.own_processes.fork()


def detach(confinement: Confinement, *, parent_pid: int, output: int, keep: Iterable[int]) -> None:
    """Part this process from the one that forked it: a session, descriptors and signals of its own.

    Args:
        confinement: the layers that will be put on.
        parent_pid: whose death is this process's death too.
        output: the descriptor that everything printed goes to.
        keep: the other descriptors that stay open.
    """
    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _keep_descriptors(output, {*keep, *confinement.readable})
    die_with(parent_pid)


def confine(
    confinement: Confinement,
    scratch_folder: Path,
    *,
    migrations_folder: str,
    parent_pid: int,
    written_bytes: int,
) -> None:
    """Make this process, which has been detached, fit to run a migration in.

    Args:
        confinement: the layers to put on.
        scratch_folder: becomes the working directory, and the place for temporary files.
        migrations_folder: can be read; an empty one is none.
        parent_pid: whose death is this process's death too.
        written_bytes: how large no file may become.

    Raises:
        OSError: the kernel refuses one of the layers.
    """
    os.chdir(scratch_folder)
    os.environ.update(HOME=str(scratch_folder), TMPDIR=str(scratch_folder))
    tempfile.tempdir = None
    # No file with everybody's weights in it where a crash happens to be.
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, written_bytes)
    if confinement.uid is not None:
        _hand_over_scratch(confinement.uid)
        become(confinement.uid)
        own_proc_files()
    drop_capabilities()
    # A change of the user has undone it.
    die_with(parent_pid)
    gain_no_privileges()
    if confinement.landlock_abi:
        _restrict_files(confinement, migrations_folder)
    if confinement.architecture:
        # Where nothing better holds signals back, this does, and the run cannot signal its own children either.
        own_pid = None if confinement.has_signal_scope else os.getpid()
        restrict_system_calls(confinement.architecture, own_pid=own_pid)


def open_readable() -> tuple[int, ...]:
    """Open what every run may read."""
    return tuple(_open_existing([*code_paths(), *_SYSTEM_PATHS]))


def code_paths() -> list[str]:
    """Return where the interpreter, the libraries and the code lie, and not the folder around the code."""
    code = {str(Path(str(package.__file__)).parent) for package in (app, migrate_ckpt)}
    # A clone holds more than code; where the libraries lie beside it, it is none.
    clone = {os.path.dirname(path) for path in code} - {folder_of_libraries()}
    paths = {sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix, *code}
    paths |= {os.path.abspath(path) for path in sys.path if path} - clone
    # Python puts it first on its path when it is told to run a module.
    return sorted(paths - {os.getcwd()})


def folder_of_libraries() -> str:
    """Return the folder that torch lies in."""
    torch = importlib.util.find_spec("torch")
    return os.path.dirname(os.path.dirname(str(torch and torch.origin)))


def _restrict_files(confinement: Confinement, migrations_folder: str) -> None:
    # In the last one the library sees which pages were written to. The rule holds for it as long as it is open.
    opened = _open_existing([*filter(None, [migrations_folder]), "/proc/self/pagemap"])
    readable = [*confinement.readable, *opened]
    writable = _open_existing([".", os.devnull])
    restrict_files(
        confinement.landlock_abi,
        [
            *((descriptor, READ) for descriptor in readable),
            *((descriptor, READ_AND_WRITE) for descriptor in writable),
        ],
    )
    for descriptor in (*readable[:-1], *writable):
        os.close(descriptor)


def _open_existing(paths: Iterable[str]) -> list[int]:
    descriptors = []
    for path in paths:
        with contextlib.suppress(OSError):
            descriptors.append(os.open(path, os.O_PATH | os.O_CLOEXEC))
    return descriptors


def _hand_over_scratch(uid: int) -> None:
    """Give the working directory to this user; the upload in it can be read and not changed."""
    # There is none where the run was given an open file.
    if os.path.exists(UPLOAD_NAME):
        os.chown(UPLOAD_NAME, -1, uid)
        os.chmod(UPLOAD_NAME, 0o640)
    os.chown(".", uid, uid)


def _keep_descriptors(output: int, keep: set[int]) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor > 2 and descriptor not in keep:
            # The one that listed the folder is closed already.
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _limit(kind: int, most: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(kind, (most, most))

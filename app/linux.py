"""What is asked of the Linux kernel beyond Python's os module."""

from __future__ import annotations

import ctypes
import os
import signal
from functools import cache
from pathlib import Path

# From <linux/prctl.h>.
PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_PR_GET_NO_NEW_PRIVS = 39


def die_with(parent_pid: int) -> None:
    """Have this process killed when its parent dies, or now if it has died already.

    A change of the user undoes this.
    """
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # In a process namespace of its own, a process sees no parent; the folder of processes does.
    after_name = Path("/proc/self/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    if int(after_name[1]) != parent_pid:
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent dies, also of those in other sessions."""
    prctl(_PR_SET_CHILD_SUBREAPER, 1)


def call_this_process(name: str) -> None:
    """Have this process shown by this name, of which 15 bytes count."""
    checked(libc().prctl(_PR_SET_NAME, name.encode()), "prctl(PR_SET_NAME)")


def gain_no_privileges() -> None:
    """Let no program that this process starts have more rights than it has; filters require this."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def gains_no_privileges() -> bool:
    """Whether that is so."""
    result: int = libc().prctl(_PR_GET_NO_NEW_PRIVS, *[ctypes.c_ulong(0)] * 4)
    return result == 1


def own_proc_files() -> None:
    """Let this process read its own files in /proc again, after a change of its user."""
    prctl(_PR_SET_DUMPABLE, 1)


def prctl(option: int, value: int, argument: int = 0) -> None:
    """Ask the kernel for this.

    Raises:
        OSError: it refuses.
    """
    # Of a function without a prototype the arguments are passed as C ints, half as wide as these.
    arguments = (ctypes.c_ulong(number) for number in (value, argument, 0, 0))
    checked(libc().prctl(option, *arguments), f"prctl({option})")


def checked(result: int, what: str) -> int:
    """Return what a C function returned.

    Raises:
        OSError: it was -1.
    """
    if result == -1:
        raise OSError(number := ctypes.get_errno(), f"{what}: {os.strerror(number)}")
    return result


@cache
def libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def total_memory_bytes() -> int:
    """Return the memory of this machine, or of the container where that has less."""
    of_machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            text = Path("/sys/fs/cgroup", limit).read_text("ascii").strip()
        except OSError:
            continue
        if text.isdecimal():
            return min(of_machine, int(text))
    return of_machine

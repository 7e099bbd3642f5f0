"""What is asked of the Linux kernel beyond Python's os module."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

# From <linux/prctl.h>.
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def die_with(parent_pid: int) -> None:
    """Have this process killed when its parent dies, or now if it has died already."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent dies, also of those in other sessions."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def children() -> set[int]:
    """Return the children of this process, which has one thread; zombies are among them."""
    pid = os.getpid()
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()))


def held_bytes(pid: int) -> int:
    """Return what a process really holds: its own pages and shared ones, not those of mapped files.

    No rlimit bounds that: they count address space, where a mapped checkpoint has its full size.
    """
    status = Path(f"/proc/{pid}/status").read_text("ascii", "replace")
    return sum(
        int(line.split()[1]) * 1024
        for line in status.splitlines()
        if line.startswith(("RssAnon:", "RssShmem:"))
    )


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


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option})")

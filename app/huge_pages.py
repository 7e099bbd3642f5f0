"""Memory in large pages, for a process that forks often and whose children are short-lived."""

from __future__ import annotations

import ctypes
from pathlib import Path

# From <asm-generic/mman-common.h>; since Linux 6.1.
_MADV_COLLAPSE = 25
_HUGE_PAGE_BYTES = 2 << 20


def gather_into_huge_pages() -> int:
    """Have this process's own memory lie in large pages where it can, and return in how many.

    A fork copies an entry for every page, and the child's end takes each away again: of what torch
    makes of a process, that is a third of a short run. Where the kernel will not, nothing changes.
    """
    libc = ctypes.CDLL(None)
    gathered = 0
    for line in Path("/proc/self/maps").read_text("utf-8", "replace").splitlines():
        addresses, permissions, _, _, inode, *name = line.split()
        if permissions == "rw-p" and inode == "0" and name in ([], ["[heap]"]):
            start, end = (int(address, 16) for address in addresses.split("-"))
            first = -(-start // _HUGE_PAGE_BYTES) * _HUGE_PAGE_BYTES
            for address in range(first, end - _HUGE_PAGE_BYTES + 1, _HUGE_PAGE_BYTES):
                size = ctypes.c_size_t(_HUGE_PAGE_BYTES)
                done = libc.madvise(ctypes.c_void_p(address), size, _MADV_COLLAPSE)
                gathered += done == 0
    return gathered

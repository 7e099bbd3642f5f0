"""What a run and the processes that it has forked hold of memory and disk, read from outside of them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

# A run that has more than these is not measured any further.
MAX_PROCESSES = 64
MAX_SCRATCH_ENTRIES = 1000

_BLOCK_BYTES = 512


def children(pid: int) -> set[int]:
    """Return the children of a process, zombies included; none where it has gone."""
    found: set[int] = set()
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            text = Path(f"/proc/{pid}/task/{thread}/children").read_text("ascii")
            found.update(map(int, text.split()))
    except OSError:
        # The process, or this thread of it, has ended meanwhile.
        pass
    return found


def family(pid: int) -> set[int]:
    """Return the process and its descendants, or the first too many of them."""
    found: set[int] = set()
    to_visit = {pid}
    while to_visit and len(found) <= MAX_PROCESSES:
        visited = to_visit.pop()
        found.add(visited)
        to_visit |= children(visited) - found
    return found


def held_bytes(pid: int) -> int:
    """Return what a process really holds: its own pages and shared ones, not those of mapped files.

    No rlimit bounds that: they count address space, where a mapped checkpoint has its full size.
    """
    return _sum_of(pid, "status", ("RssAnon:", "RssShmem:"))


def held_share_bytes(pid: int) -> int:
    """Return the same with each page divided by how many processes hold it: exact, and slow."""
    return _sum_of(pid, "smaps_rollup", ("Pss_Anon:", "Pss_Shmem:"))


def _sum_of(pid: int, name: str, members: tuple[str, ...]) -> int:
    try:
        text = Path(f"/proc/{pid}/{name}").read_text("ascii", "replace")
    except OSError:
        # One that has ended holds nothing.
        return 0
    return sum(
        int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(members)
    )


def scratch_bytes(folder: Path, pids: set[int]) -> int | None:
    """Return what lies in a folder, and in files that have lost their name and are open still.

    None where there is more than can be looked at.
    """
    entries = 0
    to_visit = [str(folder)]
    blocks = _nameless_blocks(pids, _device(folder))
    while to_visit:
        try:
            with os.scandir(to_visit.pop()) as found:
                for entry in found:
                    entries += 1
                    status = entry.stat(follow_symlinks=False)
                    blocks[status.st_ino] = status.st_blocks
                    if stat.S_ISDIR(status.st_mode):
                        to_visit.append(entry.path)
        except FileNotFoundError:
            # The run goes on while we look.
            continue
        except OSError:
            # Closed to us, or deeper than a path is long: no run has a need of that.
            return None
        if entries > MAX_SCRATCH_ENTRIES:
            return None
    return sum(blocks.values()) * _BLOCK_BYTES


def _device(folder: Path) -> int | None:
    try:
        return folder.stat().st_dev
    except OSError:
        return None


def _nameless_blocks(pids: set[int], device: int | None) -> dict[int, int]:
    """Return for each file without a name, by its number, how many blocks it has."""
    blocks: dict[int, int] = {}
    for pid in pids:
        try:
            with os.scandir(f"/proc/{pid}/fd") as descriptors:
                for descriptor in descriptors:
                    status = descriptor.stat()
                    if (status.st_dev, status.st_nlink) == (device, 0):
                        blocks[status.st_ino] = status.st_blocks
        except OSError:
            # It has ended, or closed this one, meanwhile.
            continue
    return blocks

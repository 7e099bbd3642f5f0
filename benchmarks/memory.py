"""How much memory a process and all its descendants really hold, and the most of it over a time."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

SAMPLE_SECONDS = 0.01
FIELDS = ("Pss_Anon:", "Pss_Shmem:")


class Peak:
    """Samples a process tree in a thread while the `with` block runs; `bytes` is the most it held.

    Counted is each process's proportional share (PSS) of anonymous and shared memory. Pages of
    files are left out: they are the kernel's cache, which it takes back when it needs the room.
    """

    def __init__(self, pid: int) -> None:
        self.bytes = 0
        self._pid = pid
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _sample(self) -> None:
        is_over = False
        while not is_over:
            self.bytes = max(self.bytes, sum(map(held_bytes, process_tree(self._pid))))
            is_over = self._is_over.wait(SAMPLE_SECONDS)


def process_tree(root: int) -> set[int]:
    """The process and its descendants, by their parents' ids: sessions and groups do not matter."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                after_name = (folder / "stat").read_text().rpartition(")")[2].split()
                parents[int(folder.name)] = int(after_name[1])
    tree = {root}
    while more := {pid for pid, parent in parents.items() if parent in tree} - tree:
        tree |= more
    return tree


def held_bytes(pid: int) -> int:
    """0 for a process that has ended, or that may not be looked at."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(FIELDS))

"""The scratch of one request: a folder, and the one thread that touches the disk for it.

Everything goes through that thread in order, so the removal comes last, whatever became of the request.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import stat
import tempfile
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

from fastapi import Request

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class Scratch:
    """One request's folder and thread; `remove` ends both without waiting."""

    def __init__(self, root: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="run-", dir=root))
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=self.folder.name)
        self._descriptors: list[int] = []

    def create(self, name: str) -> int:
        """Make a file of this name and return its descriptor, open for both directions."""
        return self._open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL)

    def open(self, name: str) -> int:
        """Open for reading what a run has left under this name, and nothing that it put there as a trap.

        Raises:
            OSError: there is no such file, or it is a link.
        """
        descriptor = open_left_file(self.folder / name)
        self._descriptors.append(descriptor)
        return descriptor

    def _open(self, name: str, flags: int) -> int:
        descriptor = os.open(self.folder / name, flags | os.O_CLOEXEC, mode=0o600)
        self._descriptors.append(descriptor)
        return descriptor

    def begin(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Let the thread do this after all it was given before."""
        return self._thread.submit(work, *args, **kwargs)

    async def do(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Let the thread do this and wait for what it returns."""
        return await asyncio.wrap_future(self.begin(work, *args, **kwargs))

    def remove(self) -> None:
        self._thread.submit(self._remove)
        self._thread.shutdown(wait=False)

    def _remove(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        try:
            remove_tree(self.folder)
        except OSError:
            logger.exception("%s could not be removed", self.folder)


def remove_tree(folder: Path) -> None:
    """Remove a folder in which a migration may have done anything: closed folders to us, or nested them deeply.

    Raises:
        OSError: something in it cannot be removed.
    """
    to_empty = [folder]
    moved = 0
    while to_empty:
        emptied = to_empty.pop()
        os.chmod(emptied, 0o700)
        with os.scandir(emptied) as entries:
            found = list(entries)
        for entry in found:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
                continue
            os.chmod(entry.path, 0o700)
            moved += 1
            # Beside the others, so that no path gets longer than the system takes.
            place = folder.with_name(f"{folder.name}.{moved}")
            os.rename(entry.path, place)
            to_empty.append(place)
        os.rmdir(emptied)


def open_left_file(path: Path) -> int:
    """Open for reading a file that a run has left, and nothing that it put there as a trap.

    Raises:
        OSError: there is no such file, or it is a link.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a plain file", path.name)
    return descriptor


async def new_scratch(request: Request) -> AsyncIterator[Scratch]:
    """Give a route its scratch; it goes when the answer is sent, or the client has gone."""
    scratch = Scratch(request.app.state.scratch_root)
    try:
        yield scratch
    finally:
        scratch.remove()

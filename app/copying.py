"""Bytes from open files to a new one, copied by the kernel where it can, and kept by the disk."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from app.responses import Extent

# So much is copied between two looks whether to go on.
COPY_BYTES = 64 * 2**20
# What the kernel copies in one step. See the same in the library's pieces.
_KERNEL_STEP = 2**16

# The disk is full, or the quota is used up.
FULL = (errno.ENOSPC, errno.EDQUOT)
# The kernel does not copy between these two files by itself.
_NOT_BY_KERNEL = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)

Tell = Callable[[int], None]
"""Is told how many bytes there are so far; what it raises ends the transfer."""


def copy_extents(extents: Iterable[Extent], target: Path, tell: Tell) -> None:
    """Write these bytes to a new file, the kernel copying where it can, and have the disk keep it.

    Raises:
        EOFError: a file is shorter than its extents say.
    """
    copied = 0
    with target.open("xb", buffering=0) as file:
        for extent in extents:
            done = 0
            while done < extent.count:
                # A little first, so that the kernel's own steps begin where its pages in the target do.
                most = -copied % _KERNEL_STEP or COPY_BYTES
                count = min(extent.count - done, most)
                moved = _copy(extent.descriptor, file.fileno(), count, extent.offset + done)
                if not moved:
                    raise EOFError(f"{extent.count - done} bytes are missing")
                done += moved
                copied += moved
                tell(copied)
        os.fsync(file.fileno())


def _copy(source: int, target: int, count: int, offset: int) -> int:
    try:
        return os.copy_file_range(source, target, count, offset_src=offset)
    except OSError as error:
        if error.errno not in _NOT_BY_KERNEL:
            raise
    return os.write(target, os.pread(source, min(count, 2**20), offset))


def flush(path: Path) -> None:
    """Have the disk keep what is in this file or folder."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

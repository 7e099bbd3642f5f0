"""The scratch of one instance of the service: a folder that is locked while its process lives.

Several instances may share the operator's scratch folder, and one may have been killed: a folder
whose lock can be had belongs to nobody any more, and goes.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

PREFIX = "migrate-ckpt-"
LOCK_NAME = ".migrate-ckpt-instance"


@contextlib.contextmanager
def instance_folder(scratch_folder: Path) -> Iterator[Path]:
    """Make a folder for this process, and remove it in the end; those of dead ones go first."""
    remove_abandoned(scratch_folder)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=scratch_folder))
    # Runs that are not root go through it, and find in it only what they have the name of.
    folder.chmod(0o711)
    lock = _lock(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def remove_abandoned(scratch_folder: Path) -> None:
    """Remove what instances have left that did not come to remove it themselves."""
    for lock_file in scratch_folder.glob(f"{PREFIX}*/{LOCK_NAME}"):
        # Somebody else's, or gone in this moment.
        with contextlib.suppress(OSError):
            lock = os.open(lock_file, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock_file.parent, ignore_errors=True)
                logger.info("%s was left by an instance that is gone: removed", lock_file.parent)
            finally:
                os.close(lock)


def _lock(folder: Path) -> int:
    """Return the descriptor that holds the lock; it is had before anybody can see that there is one."""
    new = folder / f"{LOCK_NAME}.new"
    lock = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode=0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    new.rename(folder / LOCK_NAME)
    return lock

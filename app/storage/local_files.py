"""Checkpoints in files of this machine: read where they lie, and written beside their place."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from app.copying import Tell, copy_extents, flush
from app.errors import ServiceError
from app.responses import Extent
from app.storage.locations import Location


def open_file(location: Location) -> int:
    """Open a file for reading; returns its descriptor.

    Raises:
        ServiceError: there is none, or it cannot be read.
    """
    try:
        descriptor = os.open(location.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise ServiceError("source_not_found", f"There is nothing at {location}.") from error
    except OSError as error:
        message = f"{location} cannot be read: {error.strerror}."
        raise ServiceError("source_refused", message) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ServiceError("source_refused", f"{location} is no regular file.")
    return descriptor


def real_location(descriptor: int) -> Location:
    """Return where an open file really lies."""
    return Location("file", "", os.readlink(f"/proc/self/fd/{descriptor}"))


def identity_of(descriptor: int) -> tuple[int, int, int, int]:
    """Return what tells an open file from another: device, inode, bytes, nanoseconds of its last change."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def refuse_changed(descriptor: int, before: Sequence[int], location: Location) -> None:
    """Refuse a source that was written to while it was migrated.

    Raises:
        ServiceError: it was.
    """
    if identity_of(descriptor) != tuple(before):
        message = f"{location} was changed while it was migrated; send the job again."
        raise ServiceError("source_changed", message, retryable=True)


def write_file(location: Location, extents: Iterable[Extent], tell: Tell) -> None:
    """Write a file beside its place, the kernel copying where it can, and give it its name when it is whole.

    Raises:
        ServiceError: it cannot be written.
    """
    target = Path(location.path)
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name[:100]}.", dir=target.parent)
        os.close(descriptor)
    except OSError as error:
        message = f"{location} cannot be written: {error.strerror}."
        raise ServiceError("destination_refused", message) from error
    building = Path(name)
    try:
        building.unlink()
        copy_extents(extents, building, tell)
        os.rename(building, target)
        flush(target.parent)
    except OSError as error:
        message = f"{location} cannot be written: {error.strerror}."
        raise ServiceError("destination_unavailable", message, retryable=True) from error
    finally:
        with suppress(FileNotFoundError):
            building.unlink()

"""Checkpoints in files of this machine: read where they lie, and written beside their place."""

from __future__ import annotations

import errno
import filecmp
import os
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from app.copying import Tell, copy_extents, flush
from app.errors import ServiceError
from app.responses import Extent
from app.storage.locations import Location

# A file system that has no second names.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


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


def write_file(
    location: Location, extents: Iterable[Extent], tell: Tell, *, writer: str, may_replace: bool
) -> None:
    """Write a file beside its place, the kernel copying where it can, and give it its name when it is whole.

    What the same writer had left unfinished is begun anew. Where nothing may be replaced and the same bytes are
    there already, they are left as they are: a job that was interrupted had written them.

    Raises:
        ServiceError: it cannot be written, or another file is there that may not be replaced.
    """
    target = Path(location.path)
    # Not after the target's name, which may be as long as names can be.
    building = target.with_name(f".{writer}.part")
    try:
        building.unlink(missing_ok=True)
        building.touch(exist_ok=False)
    except OSError as error:
        message = f"{location} cannot be written: {error.strerror}."
        raise ServiceError("destination_refused", message) from error
    try:
        building.unlink()
        copy_extents(extents, building, tell)
        if may_replace:
            os.rename(building, target)
        else:
            _place_beside_others(building, target, location)
        flush(target.parent)
    except OSError as error:
        message = f"{location} cannot be written: {error.strerror}."
        raise ServiceError("destination_unavailable", message, retryable=True) from error
    finally:
        with suppress(FileNotFoundError):
            building.unlink()


def _place_beside_others(building: Path, target: Path, location: Location) -> None:
    try:
        os.link(building, target)
    except OSError as error:
        if error.errno not in (errno.EEXIST, *_NO_LINKS):
            raise
        if not os.path.lexists(target):
            os.rename(building, target)
        elif not (target.is_file() and filecmp.cmp(building, target, shallow=False)):
            raise exists_already(location) from error


def exists_already(location: Location) -> ServiceError:
    """Return the refusal to replace what is there."""
    message = f'{location} is there already; with "overwrite": true it is replaced.'
    return ServiceError("destination_exists", message)

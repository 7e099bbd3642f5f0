"""Opens a way through folders that only root may pass, for runs that are not root and need what lies below them.

An interpreter below `/root`, say. The folder itself stays as it is for everybody else: in the mount namespace of this
process an empty one stands in its place, and what is needed is mounted into that. Of the rest runs see nothing at all.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from app.linux import checked, libc
from app.privileges import leave_mounts

# From <linux/mount.h>.
_NO_SET_UID, _NO_DEVICES, _BIND, _RECURSIVE = 0x2, 0x4, 0x1000, 0x4000


def open_way(uid: int, paths: Iterable[str]) -> None:
    """Let this user come to these paths, in this process and its children.

    Raises:
        OSError: the kernel refuses.
    """
    needed = _outermost(os.path.realpath(path) for path in paths if os.path.exists(path))
    ways = {path: closed for path in needed if (closed := _first_closed(uid, Path(path)))}
    if not ways:
        return
    leave_mounts()
    targets = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in ways}
    for closed in set(ways.values()):
        _mount("tmpfs", closed, "tmpfs", _NO_SET_UID | _NO_DEVICES, "mode=0711,size=1m")
    for path, target in targets.items():
        if stat.S_ISDIR(os.fstat(target).st_mode):
            os.makedirs(path, 0o711)
        else:
            os.makedirs(os.path.dirname(path), 0o711, exist_ok=True)
            Path(path).touch()
        _mount(f"/proc/self/fd/{target}", path, "", _BIND | _RECURSIVE, "")
        os.close(target)


def _outermost(paths: Iterable[str]) -> list[str]:
    """Those that lie in none of the others."""
    found: list[str] = []
    for path in sorted(set(paths)):
        if not found or os.path.commonpath([found[-1], path]) != found[-1]:
            found.append(path)
    return found


def _first_closed(uid: int, path: Path) -> str | None:
    """The first folder on the way to a path that the user may not pass."""
    for folder in reversed(path.parents):
        status = folder.stat()
        if status.st_uid != uid and not status.st_mode & stat.S_IXOTH:
            return str(folder)
    return None


def _mount(source: str, target: str, kind: str, flags: int, data: str) -> None:
    arguments = (os.fsencode(text) for text in (source, target, kind))
    checked(libc().mount(*arguments, flags, os.fsencode(data)), f"mount on {target}")

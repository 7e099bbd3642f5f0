"""Whose rights a run has, and which network and processes it sees: users, capabilities, namespaces."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

from app.linux import checked, libc

# From <linux/sched.h>.
_NEW_MOUNTS = 0x00020000
_NEW_USER = 0x10000000
_NEW_PROCESSES = 0x20000000
_NEW_NETWORK = 0x40000000
# From <linux/mount.h>.
_RECURSIVE, _SLAVE = 0x4000, 0x80000
# From <linux/capability.h>: version 3, of this process.
_CAPABILITIES_HEADER = struct.pack("=Ii", 0x20080522, 0)
_CAPABILITIES_BYTES = 24


def overflow_uid() -> int:
    """Return the user that owns nothing on a machine, as far as the kernel knows: mostly 65534."""
    try:
        return int(Path("/proc/sys/kernel/overflowuid").read_text("ascii"))
    except (OSError, ValueError):
        return 65534


def become(uid: int) -> None:
    """Give up being root for good, for this user and the group of the same number.

    Raises:
        OSError: the kernel refuses.
    """
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def drop_capabilities() -> None:
    """Give up every right that root has beyond those of the owner of root's files."""
    data = ctypes.create_string_buffer(_CAPABILITIES_BYTES)
    checked(libc().capset(_CAPABILITIES_HEADER, data), "capset")


def has_capabilities() -> bool:
    data = ctypes.create_string_buffer(_CAPABILITIES_BYTES)
    checked(libc().capget(_CAPABILITIES_HEADER, data), "capget")
    return any(data.raw)


def leave_network() -> None:
    """Move this process to a network of its own, in which there is nothing.

    One that is not root becomes master of a user namespace for that, in which only its own user is known.

    Raises:
        OSError: the kernel refuses.
    """
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        _unshare(_NEW_NETWORK)
        return
    _unshare(_NEW_USER | _NEW_NETWORK)
    Path("/proc/self/setgroups").write_text("deny", "ascii")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1", "ascii")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1", "ascii")


def leave_mounts() -> None:
    """Move this process to a mount namespace of its own: what it mounts nobody else sees.

    Raises:
        OSError: the kernel refuses.
    """
    _unshare(_NEW_MOUNTS)
    checked(libc().mount(None, b"/", None, _RECURSIVE | _SLAVE, None), "mount")


class OwnProcesses:
    """Forks children into process namespaces of their own: each sees, and signals, its descendants alone.

    When such a child ends, the kernel ends all of them.
    """

    def __init__(self) -> None:
        self._outside = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)

    def fork(self) -> int:
        """Fork a child into a namespace of its own; return its pid outside, or 0 in it.

        Raises:
            OSError: the kernel refuses, or there is no process to be had.
        """
        _unshare(_NEW_PROCESSES)
        try:
            pid = os.fork()
        except OSError:
            self._come_back()
            raise
        if pid:
            self._come_back()
        return pid

    def _come_back(self) -> None:
        """Have later children born outside again."""
        checked(libc().setns(self._outside, _NEW_PROCESSES), "setns")


def _unshare(namespaces: int) -> None:
    checked(libc().unshare(namespaces), "unshare")

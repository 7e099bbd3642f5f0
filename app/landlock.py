"""The file system cut down for one process and its children (`Documentation/userspace-api/landlock.rst`).

What is not allowed here is refused, whoever owns it. The kernel can refuse the more the newer it is: its ABI says what.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable

from app.linux import checked, libc

# The same numbers on every architecture.
_CREATE_RULESET = 444
_ADD_RULE = 445
_RESTRICT_SELF = 446
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1

# From <linux/landlock.h>: rights to files and folders, one bit each.
_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE = 1 << 4, 1 << 5
_MAKE_DIR, _MAKE_REG, _MAKE_SYM = 1 << 7, 1 << 8, 1 << 12
_REFER, _TRUNCATE = 1 << 13, 1 << 14
# How many of these rights a kernel of this ABI knows.
_KNOWN_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
# Both rights to TCP; both scopes: abstract sockets, and signals to processes outside.
_TCP, _TCP_ABI = 0b11, 4
_SCOPES, _SCOPE_ABI = 0b11, 6

READ = _READ_FILE | _READ_DIR
READ_AND_WRITE = (
    READ
    | _WRITE_FILE
    | _TRUNCATE
    | _REMOVE_DIR
    | _REMOVE_FILE
    | _MAKE_DIR
    | _MAKE_REG
    | _MAKE_SYM
    | _REFER
)
# Of those above, what can be allowed of a thing that is no folder.
_OF_FILES = _READ_FILE | _WRITE_FILE | _TRUNCATE


def landlock_abi() -> int:
    """Return what the kernel knows of Landlock, from 1 on; 0 where it has none, or refuses to say."""
    abi: int = libc().syscall(_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)
    return max(abi, 0)


def has_signal_scope(abi: int) -> bool:
    """Whether processes outside are out of the reach of signals."""
    return abi >= _SCOPE_ABI


def restrict_files(abi: int, allowed: Iterable[tuple[int, int]]) -> None:
    """Refuse this process and its children all files but the allowed, and programs altogether; for good.

    Args:
        abi: as `landlock_abi` says.
        allowed: descriptors of files and of folders, which count with all below, each with its rights.

    Raises:
        OSError: the kernel refuses.
    """
    handled = (1 << _KNOWN_FILE_RIGHTS[min(abi, max(_KNOWN_FILE_RIGHTS))]) - 1
    ruleset = _create_ruleset(abi, handled)
    try:
        for descriptor, rights in allowed:
            if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
                rights &= _OF_FILES
            # struct landlock_path_beneath_attr, which is packed.
            rule = struct.pack("=Qi", rights & handled, descriptor)
            _syscall("landlock_add_rule", _ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0)
        _syscall("landlock_restrict_self", _RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _create_ruleset(abi: int, handled: int) -> int:
    # struct landlock_ruleset_attr, as far as this kernel knows it.
    attributes = struct.pack("=Q", handled)
    if abi >= _TCP_ABI:
        attributes += struct.pack("=Q", _TCP)
    if abi >= _SCOPE_ABI:
        attributes += struct.pack("=Q", _SCOPES)
    return _syscall("landlock_create_ruleset", _CREATE_RULESET, attributes, len(attributes), 0)


def _syscall(name: str, number: int, *arguments: int | bytes) -> int:
    result: int = libc().syscall(
        ctypes.c_long(number),
        *(value if isinstance(value, bytes) else ctypes.c_long(value) for value in arguments),
    )
    return checked(result, name)

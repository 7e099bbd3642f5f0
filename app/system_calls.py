"""The system calls that a run is refused, as a filter in the kernel (`userspace-api/seccomp_filter.rst`).

A run needs files, memory and threads. What opens a way out of its process is refused with EPERM: sockets of every
family, other processes' memory, namespaces and mounts, and what works behind the back of Landlock and of our limits.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from app.linux import PR_SET_PDEATHSIG, prctl

# From <linux/prctl.h>, <linux/seccomp.h>.
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
_KILL_PROCESS = 0x80000000
_ERRNO = 0x00050000
_ALLOW = 0x7FFF0000

# From <linux/bpf_common.h>; the first one loads a word of `struct seccomp_data`.
_LOAD = 0x20
_AND = 0x54
_JUMP = 0x05
_JUMP_IF_EQUAL = 0x15
_JUMP_IF_AT_LEAST = 0x35
_JUMP_IF_ANY_BIT = 0x45
_RETURN = 0x06

_NUMBER_OFFSET = 0
_ARCHITECTURE_OFFSET = 4
_ARGUMENTS_OFFSET = 16

# From <linux/sched.h>: all CLONE_NEW… that clone() takes.
_NEW_NAMESPACES = 0x7E020000
# From <linux/net.h>; a datagram socket, unlike these, sends to whatever address it is told.
_AF_UNIX, _SOCK_STREAM, _SOCK_SEQPACKET, _SOCK_TYPE_MASK = 1, 1, 5, 0xF

_X32_NUMBERS = 0x40000000

# Of each call the number on x86-64 and on arm64; None where it has no such call.
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    # To the network, and to services of this machine by their sockets' names.
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    # Into other processes.
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    # Calls by another road, which no filter sees.
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    # Memory that is charged to nobody, or outlives its process.
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    # Another view of the file system.
    "mount": (165, 40),
    "umount2": (166, 39),
    "move_mount": (429, 429),
    "mount_setattr": (442, 442),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    # Where the kernel has been broken into, and what changes the machine.
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "lookup_dcookie": (212, 18),
    "modify_ldt": (154, None),
    "iopl": (172, None),
    "ioperm": (173, None),
    "syslog": (103, 116),
    "acct": (163, 89),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "vhangup": (153, 58),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
}

_CLONE = (56, 220)
_CLONE3 = (435, 435)
_PRCTL = (157, 167)
_SOCKETPAIR = (53, 199)
# Each takes the process as its first argument.
_SIGNALS = ((62, 129), (234, 131), (129, 138), (297, 240))  # kill, tgkill, rt_(tg)sigqueueinfo
# These take a thread, or a descriptor: whose, cannot be seen.
_OTHER_SIGNALS = ((200, 130), (424, 424))  # tkill, pidfd_send_signal


@dataclass(frozen=True, slots=True)
class Architecture:
    """What a filter must know of a processor; from <linux/audit.h>."""

    audit_value: int
    column: int


ARCHITECTURES = {
    "x86_64": Architecture(0xC000003E, 0),
    "aarch64": Architecture(0xC00000B7, 1),
}


def architecture() -> Architecture | None:
    """The one of this process, or None where there is no table for it."""
    # A 32-bit process on a 64-bit kernel calls by other numbers.
    return ARCHITECTURES.get(platform.machine()) if sys.maxsize > 2**32 else None


def restrict_system_calls(arch: Architecture, *, own_pid: int | None = None) -> None:
    """Refuse this process and its children what no run needs, for good.

    Args:
        arch: as `architecture` says.
        own_pid: the only process that may be sent signals; None: the filter leaves signals alone.

    Raises:
        OSError: the kernel has no filters, or refuses this one.
    """
    program = make_filter(arch, own_pid=own_pid)
    instructions = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: a count of instructions, and where they are.
    fprog = ctypes.create_string_buffer(
        struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions))
    )
    prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(fprog))


def make_filter(arch: Architecture, *, own_pid: int | None) -> bytes:
    """The program that the kernel runs for each system call, an array of `struct sock_filter`."""
    program = [
        _instruction(_LOAD, _ARCHITECTURE_OFFSET),
        _instruction(_JUMP_IF_EQUAL, arch.audit_value, if_true=1),
        _return(_KILL_PROCESS),
        _instruction(_LOAD, _NUMBER_OFFSET),
        _instruction(_JUMP_IF_AT_LEAST, _X32_NUMBERS, if_false=1),
        _return(_KILL_PROCESS),
    ]
    refused = [*_REFUSED.values(), *(_OTHER_SIGNALS if own_pid else ())]
    program += _refuse_all(
        [number for call in refused if (number := call[arch.column]) is not None]
    )
    # Its flags stand in memory, where no filter sees them; if there is no such call, libc makes the older one.
    program += _when(_CLONE3[arch.column], [_return(_ERRNO | errno.ENOSYS)])
    program += _when(
        _CLONE[arch.column],
        [
            _argument(0),
            _instruction(_JUMP_IF_ANY_BIT, _NEW_NAMESPACES, if_false=1),
            _REFUSE,
            _return(_ALLOW),
        ],
    )
    # A run does not outlive the process that watches it.
    program += _when(
        _PRCTL[arch.column],
        [
            _argument(0),
            _instruction(_JUMP_IF_EQUAL, PR_SET_PDEATHSIG, if_false=1),
            _REFUSE,
            _return(_ALLOW),
        ],
    )
    program += _when(
        _SOCKETPAIR[arch.column],
        [
            _argument(0),
            _instruction(_JUMP_IF_EQUAL, _AF_UNIX, if_false=4),
            _argument(1),
            _instruction(_AND, _SOCK_TYPE_MASK),
            _instruction(_JUMP_IF_EQUAL, _SOCK_STREAM, if_true=2),
            _instruction(_JUMP_IF_EQUAL, _SOCK_SEQPACKET, if_true=1),
            _REFUSE,
            _return(_ALLOW),
        ],
    )
    if own_pid:
        for call in _SIGNALS:
            program += _when(call[arch.column], _only_to(own_pid))
    return b"".join([*program, _return(_ALLOW)])


def _refuse_all(numbers: Sequence[int]) -> list[bytes]:
    """Compare with each; behind the comparisons stands the refusal, and before it a jump over it."""
    comparisons = [
        _instruction(_JUMP_IF_EQUAL, number, if_true=len(numbers) - index)
        for index, number in enumerate(numbers)
    ]
    return [*comparisons, _instruction(_JUMP, 1), _REFUSE]


def _only_to(pid: int) -> list[bytes]:
    """Let a signal through to this process and to its own group."""
    allowed = (pid, 0, -pid & 0xFFFFFFFF)
    jumps = [
        _instruction(_JUMP_IF_EQUAL, value, if_true=len(allowed) - index)
        for index, value in enumerate(allowed)
    ]
    return [_argument(0), *jumps, _REFUSE, _return(_ALLOW)]


def _when(number: int, block: Sequence[bytes]) -> list[bytes]:
    """The block, jumped over unless the call has this number; it ends in a return."""
    return [_instruction(_JUMP_IF_EQUAL, number, if_false=len(block)), *block]


def _argument(position: int) -> bytes:
    # The lower half, on a little-endian machine; the kernel looks at no more of what we compare.
    return _instruction(_LOAD, _ARGUMENTS_OFFSET + 8 * position)


def _return(value: int) -> bytes:
    return _instruction(_RETURN, value)


def _instruction(code: int, operand: int, *, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, operand)


_REFUSE = _return(_ERRNO | errno.EPERM)

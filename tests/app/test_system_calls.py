"""The filter is a program for the kernel; here it is run by an interpreter, also for the other architecture."""

from __future__ import annotations

import struct

import pytest

from app.system_calls import _REFUSED, ARCHITECTURES, make_filter

ALLOWED = 0x7FFF0000
REFUSED = 0x00050001
NO_SUCH_CALL = 0x00050026
KILLED = 0x80000000

X86_64, ARM64 = ARCHITECTURES["x86_64"], ARCHITECTURES["aarch64"]
BOTH = pytest.mark.parametrize("arch", [X86_64, ARM64], ids=["x86-64", "arm64"])


def decide(
    program: bytes, number: int, *arguments: int, audit_value: int = X86_64.audit_value
) -> int:
    """Run a program of classic BPF on a `struct seccomp_data`."""
    padded = [*arguments, 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("<IIQ6Q", number, audit_value, 0, *padded)
    accumulator = position = 0
    while True:
        code, if_true, if_false, operand = struct.unpack_from("<HBBI", program, 8 * position)
        position += 1
        match code:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, operand)
            case 0x54:
                accumulator &= operand
            case 0x05:
                position += operand
            case 0x15:
                position += if_true if accumulator == operand else if_false
            case 0x35:
                position += if_true if accumulator >= operand else if_false
            case 0x45:
                position += if_true if accumulator & operand else if_false
            case 0x06:
                return int(operand)
            case _:
                raise AssertionError(f"{code:#x} is no instruction that we write")


@BOTH
@pytest.mark.parametrize("name", _REFUSED)
def test_listed_call_is_refused(arch, name) -> None:  # type: ignore[no-untyped-def]
    number = _REFUSED[name][arch.column]
    if number is None:
        pytest.skip(f"{name} is no call of this architecture")

    decision = decide(make_filter(arch, own_pid=None), number, audit_value=arch.audit_value)

    assert decision == REFUSED


@BOTH
def test_everything_else_is_allowed(arch) -> None:  # type: ignore[no-untyped-def]
    program = make_filter(arch, own_pid=None)
    refused = {numbers[arch.column] for numbers in _REFUSED.values()}
    judged_by_arguments = {53, 199, 56, 220, 435, 157, 167}

    for number in set(range(500)) - refused - judged_by_arguments:
        assert decide(program, number, audit_value=arch.audit_value) == ALLOWED, number


def test_call_of_another_architecture_ends_the_process() -> None:
    program = make_filter(X86_64, own_pid=None)

    assert decide(program, 0, audit_value=ARM64.audit_value) == KILLED
    assert decide(program, 0, audit_value=0x40000003) == KILLED


def test_call_by_the_numbers_of_x32_ends_the_process() -> None:
    assert decide(make_filter(X86_64, own_pid=None), 0x40000000 + 41) == KILLED


@pytest.mark.parametrize(
    ("arguments", "decision"),
    [
        pytest.param((1, 1), ALLOWED, id="a stream"),
        pytest.param((1, 1 | 0x80000), ALLOWED, id="a stream that is closed on exec"),
        pytest.param((1, 5), ALLOWED, id="packets in sequence"),
        pytest.param((1, 2), REFUSED, id="datagrams"),
        pytest.param((2, 1), REFUSED, id="of the network"),
    ],
)
def test_pair_of_sockets_is_allowed_where_it_reaches_nobody_else(
    arguments: tuple[int, ...], decision: int
) -> None:
    assert decide(make_filter(X86_64, own_pid=None), 53, *arguments) == decision


@pytest.mark.parametrize(
    ("flags", "decision"),
    [(0x003D0F00, ALLOWED), (0x01200011, ALLOWED), (0x10000011, REFUSED), (0x40000011, REFUSED)],
    ids=["a thread", "a fork", "a user namespace", "a network namespace"],
)
def test_clone_is_refused_new_namespaces_alone(flags: int, decision: int) -> None:
    assert decide(make_filter(X86_64, own_pid=None), 56, flags) == decision


def test_newer_clone_is_not_there_so_that_the_older_is_taken() -> None:
    assert decide(make_filter(X86_64, own_pid=None), 435) == NO_SUCH_CALL


def test_process_cannot_outlive_its_watcher() -> None:
    program = make_filter(X86_64, own_pid=None)

    assert decide(program, 157, 1, 0) == REFUSED
    assert decide(program, 157, 15, 0) == ALLOWED


@pytest.mark.parametrize(
    ("target", "decision"),
    [(77, ALLOWED), (0, ALLOWED), (2**32 - 77, ALLOWED), (78, REFUSED), (2**32 - 1, REFUSED)],
    ids=["itself", "its group", "its group by number", "another", "all"],
)
@pytest.mark.parametrize("call", [62, 234, 129, 297])
def test_signals_go_to_the_process_itself_where_nothing_else_holds_them_back(
    call: int, target: int, decision: int
) -> None:
    assert decide(make_filter(X86_64, own_pid=77), call, target) == decision
    assert decide(make_filter(X86_64, own_pid=None), call, target) == ALLOWED

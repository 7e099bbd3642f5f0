"""Files whose tensors and storages are not what they say (T12 to T14)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from tests.attacks.assemble import (
    FALSE,
    NONE,
    TRUE,
    call,
    checkpoint,
    dict_of,
    fraction,
    list_of,
    named,
    number,
    ordered_dict,
    storage,
    tensor,
    text,
    tuple_of,
)
from tests.attacks.attack import DAMAGED, PRESERVED, UNSAFE, Attack

FLOATS = struct.pack("<4f", 1, 2, 3, 4)
STORED = storage("0", 4)


def attacks(command: str) -> Iterator[Attack]:
    for name, opcodes in _impossible():
        yield _attack(f"T12-{name}", opcodes, DAMAGED)
    for name, opcodes in _carried_along():
        yield _attack(f"T12-{name}", opcodes, PRESERVED)
    absurd = call(named("torch", "device"), text("cuda"), number(2**70))
    yield _attack("T12-device-with-an-absurd-index", absurd, PRESERVED, DAMAGED)
    yield from _explosive()
    yield from _storages()


def _attack(name: str, opcodes: bytes, *outcomes: str) -> Attack:
    return Attack(name, checkpoint(opcodes, 2, [("0", FLOATS)]), outcomes)


def _rebuilt_as(dtype: bytes) -> bytes:
    return call(
        named("torch._utils", "_rebuild_tensor_v3"),
        storage("0", 16, "UntypedStorage", module="torch.storage"),
        *(number(0), tuple_of(number(2)), tuple_of(number(1)), FALSE, ordered_dict(), dtype),
    )


def _impossible() -> Iterator[tuple[str, bytes]]:
    yield "negative-offset", tensor(STORED, offset=number(-1))
    yield "offset-past-the-end", tensor(STORED, offset=number(3))
    yield "offset-that-overflows", tensor(STORED, offset=number(2**63 - 1))
    yield "fractional-offset", tensor(STORED, offset=fraction(0.5))
    yield "offset-of-a-thousand-digits", tensor(STORED, offset=number(10**1000))
    yield "negative-size", tensor(STORED, size=[-1])
    yield "size-past-the-end", tensor(STORED, size=[5])
    yield "size-that-overflows", tensor(STORED, size=[2**32, 2**32], stride=[1, 1])
    yield "size-of-a-thousand-digits", tensor(STORED, size=[10**1000])
    yield "no-size", tensor(STORED, size=NONE)
    yield "list-as-size", tensor(STORED, size=list_of(number(2)))
    yield "text-in-size", tensor(STORED, size=tuple_of(text("2")))
    yield "nested-size", tensor(STORED, size=tuple_of(tuple_of(number(2))))
    yield "truth-in-size", tensor(STORED, size=tuple_of(TRUE))
    yield "negative-stride", tensor(STORED, stride=[-1])
    yield "stride-past-the-end", tensor(STORED, stride=[4])
    yield "stride-that-overflows", tensor(STORED, size=[3], stride=[2**62])
    yield "more-strides-than-sizes", tensor(STORED, stride=[1, 1])
    yield "fewer-strides-than-sizes", tensor(STORED, size=[2, 2])
    yield "five-thousand-dimensions", tensor(STORED, size=[1] * 5000, stride=[1] * 5000)
    yield "empty-with-an-absurd-size", tensor(STORED, size=[0, 2**62], stride=[1, 1])
    yield "gradient-of-integers", tensor(storage("0", 4, "IntStorage"), requires_grad=TRUE)
    yield "unknown-storage", tensor(storage("0", 4, "NoStorage"))
    yield "function-as-storage", tensor(storage("0", 4, "load"))
    yield "storage-of-negative-length", tensor(storage("0", -4))
    yield "storage-of-absurd-length", tensor(storage("0", 2**62))
    yield (
        "storage-with-a-number-as-key",
        tensor(
            tuple_of(text("storage"), named("torch", "FloatStorage"), b"K\0", text("cpu"), b"K\4")
            + b"Q"
        ),
    )
    yield (
        "storage-without-length",
        tensor(
            tuple_of(text("storage"), named("torch", "FloatStorage"), text("0"), text("cpu")) + b"Q"
        ),
    )
    yield "no-storage", tensor(tuple_of(text("module"), named("a", "b"), text("x"), NONE) + b"Q")
    yield "list-as-persistent-id", list_of(text("storage")) + b"Q"
    yield "two-lengths-of-one-storage", list_of(tensor(STORED), tensor(storage("0", 2)))


def _carried_along() -> Iterator[tuple[str, bytes]]:
    """What torch rebuilds in other ways stays a foreign object, whatever it says."""
    yield "tensor-of-no-storage", tensor(text("x"))
    yield "too-few-arguments", call(named("torch._utils", "_rebuild_tensor_v2"), STORED)
    yield "function-as-dtype", _rebuilt_as(named("posix", "system"))
    yield (
        "quantised-with-a-wild-stride",
        call(
            named("torch._utils", "_rebuild_qtensor"),
            storage("0", 16, "QUInt8Storage"),
            *(number(0), tuple_of(number(2**40)), tuple_of(number(2**40))),
            tuple_of(named("torch", "per_tensor_affine"), fraction(1.0), number(0)),
            *(FALSE, ordered_dict()),
        ),
    )
    yield "quantised-by-the-plain-way", tensor(storage("0", 16, "QUInt8Storage"), stride=[99])
    outside = tensor(storage("0", 2, "LongStorage"), size=[1, 2], stride=[2, 1])
    yield (
        "sparse-indices-outside",
        call(
            named("torch._utils", "_rebuild_sparse_tensor"),
            named("torch", "sparse_coo"),
            tuple_of(outside, outside, tuple_of(number(1)), FALSE),
        ),
    )
    yield (
        "nested",
        call(
            named("torch._utils", "_rebuild_nested_tensor"), tensor(STORED), NONE, NONE, number(-9)
        ),
    )
    yield (
        "wrapper-subclass",
        call(
            named("torch._utils", "_rebuild_wrapper_subclass"),
            *(named("a", "B"), named("torch", "float32"), tuple_of(number(2**40))),
            *(tuple_of(number(0)), number(0), named("torch", "strided"), text("cpu"), FALSE),
        ),
    )
    yield (
        "meta",
        call(
            named("torch._utils", "_rebuild_meta_tensor_no_storage"),
            *(named("torch", "float32"), tuple_of(number(2**60)), tuple_of(number(1)), FALSE),
        ),
    )
    yield (
        "parameter-with-a-state",
        call(
            named("torch._utils", "_rebuild_parameter_with_state"),
            *(tensor(STORED), FALSE, ordered_dict(), dict_of((text("__class__"), named("a", "B")))),
        ),
    )
    yield "device-that-is-none", call(named("torch", "device"), text("nonsense:x"))
    yield "dtypes-as-keys", dict_of((named("torch", "float32"), NONE), (named("torch", "x"), NONE))


def _explosive() -> Iterator[Attack]:
    yield _attack("T13-stride-of-zero", tensor(STORED, size=[2**40], stride=[0]), PRESERVED)
    wide = tensor(STORED, size=[2**20, 2**20], stride=[0, 0])
    yield _attack("T13-parameter-with-strides-of-zero", _parameter(wide), PRESERVED)
    beyond = tensor(STORED, size=[2**47], stride=[0])
    yield _attack("T13-more-elements-than-there-can-be", beyond, DAMAGED)
    sparse = call(
        named("torch._utils", "_rebuild_sparse_tensor"),
        named("torch", "sparse_coo"),
        tuple_of(tensor(STORED), tensor(STORED), tuple_of(number(2**42)), FALSE),
    )
    yield _attack("T13-sparse-of-four-tebibytes", sparse, PRESERVED)
    late = ordered_dict() + b"r\x64\0\0\0" + b"0"
    made = tensor(STORED, hooks=b"j\x64\0\0\0")
    hooked = list_of(late + made) + b"j\x64\0\0\0" + text("k") + NONE + b"s0"
    yield _attack("T13-hooks-that-come-later", hooked, UNSAFE)


def _parameter(data: bytes) -> bytes:
    return call(named("torch._utils", "_rebuild_parameter"), data, TRUE, ordered_dict())


def _storages() -> Iterator[Attack]:
    yield _attack("T14-storage-larger-than-its-record", tensor(storage("0", 1000)), DAMAGED)
    yield _attack("T14-storage-smaller-than-its-record", tensor(storage("0", 3)), DAMAGED)
    yield _attack("T14-no-such-record", tensor(storage("7", 4)), DAMAGED)
    for name, key in {
        "path-upwards": "../data.pkl",
        "absolute-path": "/etc/passwd",
        "empty-key": "",
        "key-with-line-break": "0\n1",
        "key-with-nul": "0\0",
        "key-with-escape": "\x1b[2J\r\n",
    }.items():
        yield _attack(f"T14-{name}", tensor(storage(key, 4)), DAMAGED)
    two = list_of(tensor(STORED), tensor(storage("0", 4, "IntStorage")))
    yield _attack("T14-one-record-with-two-dtypes", two, PRESERVED)
    device = tuple_of(
        *(text("storage"), named("torch", "FloatStorage"), text("0"), text("cuda:\r\nX: y"), b"K\4")
    )
    yield _attack("T14-device-tag-with-line-break", tensor(device + b"Q"), PRESERVED, DAMAGED)

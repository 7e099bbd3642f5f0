"""The opcodes that make a global, a storage or a tensor, by themselves: they need nothing of the rest of a pickle.

What they build is what torch's own `Tensor.__reduce_ex__` names: `_rebuild_tensor_v2`, or `_rebuild_tensor_v3` with
a dtype, of a storage that a persistent id names, and around that `_rebuild_parameter` for a parameter.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from migrate_ckpt.foreign import ForeignGlobal
from migrate_ckpt.formats.storages import StorageHandle

_u4 = struct.Struct("<I").pack
_SMALL_INTS = tuple(pickle.BININT1 + bytes([number]) for number in range(256))

WriteGlobal: TypeAlias = Callable[[str, str], bytes]
"""Gives the opcodes of a global by its module and name."""


class PlainTensor(NamedTuple):
    """A tensor that its storage and layout say all of. Offset and strides are in elements.

    `dtype` is torch's name of it where it is not the storage's own; `is_parameter` wraps it as a parameter, and then
    `requires_grad` is the parameter's.
    """

    storage: StorageHandle
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    requires_grad: bool
    dtype: str | None
    is_parameter: bool


Written: TypeAlias = ForeignGlobal | StorageHandle | PlainTensor
WRITTEN_TYPES = frozenset((ForeignGlobal, StorageHandle, PlainTensor))


def push(written: Written, write_global: WriteGlobal) -> bytes:
    """The opcodes that push it on the stack of an unpickler."""
    if isinstance(written, PlainTensor):
        return write_global(*function_of(written)) + call(written, write_global)
    if isinstance(written, StorageHandle):
        before, after = _around_key(written, write_global)
        return before + text(written.key) + after
    return write_global(written.__module__, written.__qualname__)


def function_of(tensor: PlainTensor) -> tuple[str, str]:
    """Module and name of the function that rebuilds a tensor."""
    if tensor.is_parameter:
        return "torch._utils", "_rebuild_parameter"
    return _rebuild(tensor)


def call(tensor: PlainTensor, write_global: WriteGlobal) -> bytes:
    """The opcodes that call the function of a tensor, when it is on the stack already."""
    before, after = call_around_key(tensor, write_global)
    return before + text(tensor.storage.key) + after


def call_around_key(tensor: PlainTensor, write_global: WriteGlobal) -> tuple[bytes, bytes]:
    """The same before and after the text of the storage's key: equal for tensors that differ in nothing else."""
    if not tensor.is_parameter:
        return _call_rebuild(tensor, write_global)
    before, after = _call_rebuild(tensor._replace(requires_grad=False), write_global)
    parts = (
        after,
        pickle.NEWTRUE if tensor.requires_grad else pickle.NEWFALSE,
        write_global("collections", "OrderedDict"),
        _CALL_WITH_NOTHING,
        _END_OF_CALL,
    )
    return pickle.MARK + write_global(*_rebuild(tensor)) + before, b"".join(parts)


def plain_global(module: str, name: str) -> bytes:
    """A global as two lines, as every protocol has it."""
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def stack_global(module: str, name: str) -> bytes:
    """A global as two texts on the stack, as it is written from protocol 4 on."""
    return text(module) + text(name) + pickle.STACK_GLOBAL


def text(value: str) -> bytes:
    """The opcodes of a text."""
    raw = value.encode("utf-8", "surrogatepass")
    return pickle.BINUNICODE + _u4(len(raw)) + raw


def _around_key(handle: StorageHandle, write_global: WriteGlobal) -> tuple[bytes, bytes]:
    before = _STORAGE + write_global(handle.type.__module__, handle.type.__qualname__)
    return before, _location(handle.location) + _int(handle.numel) + _END_OF_ID


def _rebuild(tensor: PlainTensor) -> tuple[str, str]:
    return "torch._utils", "_rebuild_tensor_v2" if tensor.dtype is None else "_rebuild_tensor_v3"


def _call_rebuild(tensor: PlainTensor, write_global: WriteGlobal) -> tuple[bytes, bytes]:
    before, after = _around_key(tensor.storage, write_global)
    parts = [
        after,
        _int(tensor.offset),
        _ints(tensor.size),
        _ints(tensor.stride),
        pickle.NEWTRUE if tensor.requires_grad else pickle.NEWFALSE,
        write_global("collections", "OrderedDict"),
        _CALL_WITH_NOTHING,
    ]
    if tensor.dtype is not None:
        parts.append(write_global("torch", tensor.dtype))
    parts.append(_END_OF_CALL)
    return pickle.MARK + before, b"".join(parts)


@lru_cache(maxsize=64)
def _location(location: str) -> bytes:
    return text(location)


@lru_cache(maxsize=4096)
def _ints(numbers: tuple[int, ...]) -> bytes:
    return pickle.MARK + b"".join(map(_int, numbers)) + pickle.TUPLE


def _int(number: int) -> bytes:
    if number < 1 << 8:
        return _SMALL_INTS[number]
    if number < 1 << 31:
        return pickle.BININT + _u4(number)
    return pickle.dumps(number, protocol=2)[2:-1]


_STORAGE = pickle.MARK + text("storage")
_END_OF_ID = pickle.TUPLE + pickle.BINPERSID
_CALL_WITH_NOTHING = pickle.EMPTY_TUPLE + pickle.REDUCE
_END_OF_CALL = pickle.TUPLE + pickle.REDUCE

"""NumPy's scalars and arrays as numbers, texts and tensors; foreign ones are read from their recipe, without NumPy."""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from migrate_ckpt.foreign import ForeignGlobal, ForeignObject, global_path, recipe

UNKNOWN: Any = object()
"""What stands for a value that is none of NumPy's, or has no plain one like it."""

_CORES = ("numpy.core", "numpy._core")
_STRUCT = {
    "b1": "?",
    "i1": "b",
    "u1": "B",
    "i2": "h",
    "u2": "H",
    "i4": "i",
    "u4": "I",
    "i8": "q",
    "u8": "Q",
    "f2": "e",
    "f4": "f",
    "f8": "d",
    "c8": "2f",
    "c16": "2d",
}
_TORCH = {
    "b1": "bool",
    "i1": "int8",
    "u1": "uint8",
    "i2": "int16",
    "u2": "uint16",
    "i4": "int32",
    "u4": "uint32",
    "i8": "int64",
    "u8": "uint64",
    "f2": "float16",
    "f4": "float32",
    "f8": "float64",
    "c8": "complex64",
    "c16": "complex128",
}


class _DType(NamedTuple):
    code: str
    is_swapped: bool

    @property
    def itemsize(self) -> int:
        if self.code[:1] in "US":
            return int(self.code[1:] or 0) * (4 if self.code[0] == "U" else 1)
        return struct.calcsize(f"={_STRUCT[self.code]}")


def plain_numpy(value: Any) -> Any:
    """Return the number, text, tensor or list for a value of NumPy's; `UNKNOWN` for what has none."""
    if isinstance(value, ForeignObject):
        return _plain_foreign(value)
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, (numpy.generic, numpy.ndarray)):
        return UNKNOWN
    dtype = _DType(value.dtype.str[1:], value.dtype.str[0] == ">")
    if not _is_known(dtype):
        return UNKNOWN
    if isinstance(value, numpy.generic):
        return _scalar(dtype, value.tobytes())
    # Memory order does not matter to a value, but it does to the bytes of the file.
    is_fortran = value.flags.f_contiguous and not value.flags.c_contiguous
    data = value.tobytes("F" if is_fortran else "C")
    return _array(dtype, value.shape, data, is_fortran=is_fortran)


def _plain_foreign(value: ForeignObject) -> Any:
    made = recipe(value)
    name = global_path(made.function) if isinstance(made.function, ForeignGlobal) else ""
    core = next((core for core in _CORES if name.startswith(f"{core}.")), None)
    if core is None:
        return UNKNOWN
    name = name.removeprefix(f"{core}.")
    match name, made.args, made.state:
        case "multiarray.scalar", (dtype, bytes(data)), None:
            known = _foreign_dtype(dtype)
            return UNKNOWN if known is None else _scalar(known, data)
        case "multiarray._reconstruct", _, (_, tuple(shape), dtype, is_fortran, bytes(data)):
            return _foreign_array(dtype, shape, data, is_fortran=bool(is_fortran))
        case "numeric._frombuffer", (bytes() | bytearray() as data, dtype, tuple(shape), order), _:
            return _foreign_array(dtype, shape, bytes(data), is_fortran=order == "F")
    return UNKNOWN


def _foreign_array(dtype: Any, shape: tuple[Any, ...], data: bytes, *, is_fortran: bool) -> Any:
    known = _foreign_dtype(dtype)
    if known is None or not all(type(n) is int and n >= 0 for n in shape):
        return UNKNOWN
    return _array(known, shape, data, is_fortran=is_fortran)


def _foreign_dtype(value: Any) -> _DType | None:
    if not isinstance(value, ForeignObject):
        return None
    made = recipe(value)
    if not isinstance(made.function, ForeignGlobal) or global_path(made.function) != "numpy.dtype":
        return None
    code = made.args[0] if made.args else None
    order = made.state[1] if type(made.state) is tuple and len(made.state) > 1 else "|"
    dtype = _DType(code, order == ">") if type(code) is str else None
    return dtype if dtype is not None and _is_known(dtype) else None


def _is_known(dtype: _DType) -> bool:
    is_text = dtype.code[:1] in ("U", "S") and dtype.code[1:].isdecimal()
    return is_text or dtype.code in _STRUCT


def _scalar(dtype: _DType, data: bytes) -> Any:
    if len(data) != dtype.itemsize:
        return UNKNOWN
    if dtype.code[0] == "U":
        text = data.decode("utf-32-be" if dtype.is_swapped else "utf-32-le", "surrogatepass")
        return text.rstrip("\0")
    if dtype.code[0] == "S":
        return data.rstrip(b"\0")
    numbers = struct.unpack((">" if dtype.is_swapped else "<") + _STRUCT[dtype.code], data)
    return complex(*numbers) if len(numbers) == 2 else numbers[0]


def _array(dtype: _DType, shape: Sequence[int], data: bytes, *, is_fortran: bool) -> Any:
    if len(data) != math.prod(shape) * dtype.itemsize:
        return UNKNOWN
    if dtype.code[0] in "US":
        return _nested(dtype, list(shape), data) if not is_fortran else UNKNOWN
    import torch

    torch_dtype = getattr(torch, _TORCH[dtype.code])
    if dtype.is_swapped:
        # The two numbers of a complex one are swapped each by itself.
        size = dtype.itemsize // (2 if dtype.code[0] == "c" else 1)
        data = b"".join(data[i : i + size][::-1] for i in range(0, len(data), size))
    flat = (
        torch.frombuffer(bytearray(data), dtype=torch_dtype)
        if data
        else torch.empty(0, dtype=torch_dtype)
    )
    if is_fortran:
        return flat.clone().reshape(tuple(reversed(shape))).permute(*reversed(range(len(shape))))
    return flat.clone().reshape(tuple(shape))


def _nested(dtype: _DType, shape: list[int], data: bytes) -> Any:
    if not shape:
        return _scalar(dtype, data)
    size = len(data) // shape[0] if shape[0] else 0
    return [_nested(dtype, shape[1:], data[i * size : (i + 1) * size]) for i in range(shape[0])]

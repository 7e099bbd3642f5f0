"""The header of a safetensors file: which tensors it holds, where, and free text about them.

Eight bytes of length, little-endian, then a JSON object, then the bytes of all tensors without a gap. What is accepted
here the reference accepts too (github.com/huggingface/safetensors, tensor.rs). It also lets pass what no writer writes
and two readers could understand differently, which is refused here: blanks before the object, a name that is there
twice, fields of a tensor that it does not know, and a tensor written as a list.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

from migrate_ckpt.errors import TooLarge, UnreadableCheckpoint
from migrate_ckpt.formats.source import Source

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
METADATA = "__metadata__"
ALIGNMENT = 64
_MAX_NUMBER = (1 << 64) - 1

# Name of the dtype: torch's name of it, if it has it, and bits per element.
DTYPES: dict[str, tuple[str | None, int]] = {
    "F64": ("float64", 64),
    "F32": ("float32", 32),
    "F16": ("float16", 16),
    "BF16": ("bfloat16", 16),
    "I64": ("int64", 64),
    "I32": ("int32", 32),
    "I16": ("int16", 16),
    "I8": ("int8", 8),
    "U64": ("uint64", 64),
    "U32": ("uint32", 32),
    "U16": ("uint16", 16),
    "U8": ("uint8", 8),
    "BOOL": ("bool", 8),
    "C64": ("complex64", 64),
    "F8_E4M3": ("float8_e4m3fn", 8),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 8),
    "F8_E5M2": ("float8_e5m2", 8),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", 8),
    "F8_E8M0": ("float8_e8m0fnu", 8),
    "F6_E2M3": (None, 6),
    "F6_E3M2": (None, 6),
    # torch packs two elements into one, and says half the length of the last dimension.
    "F4": ("float4_e2m1fn_x2", 4),
}


class TensorEntry(NamedTuple):
    """One tensor: what it is, and where its bytes are in the file."""

    dtype: str
    shape: tuple[int, ...]
    data_offset: int
    size: int


class Header(NamedTuple):
    """Tensors by name, in the order the header names them, and the text beside them.

    `data_offset` is where the tensors' bytes begin.
    """

    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]
    data_offset: int


def is_safetensors(start: bytes) -> bool:
    """Whether a file that starts like this is meant as safetensors: a length that may be, and an object."""
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    return length <= MAX_HEADER_BYTES and start[LENGTH_BYTES:].lstrip()[:1] == b"{"


def read_header(source: Source) -> Header:
    """Read and check the header.

    Raises:
        UnreadableCheckpoint: It breaks a rule of the format, or does not fit the file.
        TooLarge: It is longer than the format allows.
    """
    length = int.from_bytes(source.read(0, LENGTH_BYTES), "little")
    if length > MAX_HEADER_BYTES:
        raise TooLarge(f"the header has {length} bytes; the format's limit is {MAX_HEADER_BYTES}")
    data_offset = LENGTH_BYTES + length
    if data_offset > source.size:
        raise UnreadableCheckpoint("the file ends inside its safetensors header: it is cut off")
    fields = _parse(source.read(LENGTH_BYTES, length))
    metadata = _check_metadata(fields.pop(METADATA, None))
    tensors = {name: _check_tensor(name, info, data_offset) for name, info in fields.items()}
    _check_coverage(tensors, data_offset, source.size)
    return Header(tensors, metadata, data_offset)


def write_header(
    tensors: Mapping[str, tuple[str, tuple[int, ...], int, int]],
    metadata: Mapping[str, str],
    *,
    phase: int,
) -> bytes:
    """The header for tensors with dtype, shape, begin and end, which are in bytes after the header.

    It is padded with blanks so that it ends at `phase` modulo 64.
    """
    fields: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    for name, (dtype, shape, start, end) in tensors.items():
        fields[name] = {"dtype": dtype, "shape": shape, "data_offsets": (start, end)}
    raw = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    raw += b" " * ((phase - LENGTH_BYTES - len(raw)) % ALIGNMENT)
    return len(raw).to_bytes(LENGTH_BYTES, "little") + raw


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        text = raw.decode()
        if not text.startswith("{"):
            raise ValueError("it does not begin with an object")
        fields: dict[str, Any] = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_int=_natural,
            parse_float=_refuse_number,
            parse_constant=_refuse_number,
        )
    # RecursionError: lists in lists in lists.
    except (ValueError, RecursionError) as error:
        raise UnreadableCheckpoint(f"the safetensors header is no good JSON: {error}") from error
    return fields


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a name is there twice")
    # JSON can escape half a character, which nobody could write again.
    for name in fields:
        name.encode()
    return fields


def _natural(text: str) -> int:
    if text.startswith("-") or len(text) > 20 or int(text) > _MAX_NUMBER:
        raise ValueError("a number is negative or has more than 64 bits")
    return int(text)


def _refuse_number(text: str) -> NoReturn:
    raise ValueError("a number is no integer")


def _check_metadata(metadata: object) -> dict[str, str]:
    if metadata is None:
        return {}
    if type(metadata) is not dict or not all(type(text) is str for text in metadata.values()):
        raise UnreadableCheckpoint(f"{METADATA} of the safetensors header is not text by name")
    try:
        for text in metadata.values():
            text.encode()
    except UnicodeEncodeError as error:
        raise UnreadableCheckpoint(f"{METADATA} of the safetensors header is no text") from error
    return metadata


def _check_tensor(name: str, info: object, data_offset: int) -> TensorEntry:
    if type(info) is not dict or info.keys() != {"dtype", "shape", "data_offsets"}:
        raise UnreadableCheckpoint(
            f"tensor {name[:80]!r} has not just a dtype, a shape and offsets"
        )
    dtype, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
    if not (type(dtype) is str and dtype in DTYPES):
        raise UnreadableCheckpoint(f"tensor {name[:80]!r} is of a dtype that is not known")
    if not (_is_numbers(shape) and _is_numbers(offsets) and len(offsets) == 2):
        raise UnreadableCheckpoint(f"tensor {name[:80]!r} has a shape or offsets that are none")
    start, end = offsets
    count, bits = 1, DTYPES[dtype][1]
    for length in shape:
        # As the reference computes: a product of over 64 bits is refused even where a zero comes after.
        count *= length
        if count * bits > _MAX_NUMBER:
            raise UnreadableCheckpoint(f"tensor {name[:80]!r} is impossibly large")
    if start > end or count * bits != 8 * (end - start):
        raise UnreadableCheckpoint(
            f"tensor {name[:80]!r} has other offsets than its dtype and shape need"
        )
    return TensorEntry(dtype, tuple(shape), data_offset + start, end - start)


def _is_numbers(value: object) -> bool:
    return type(value) is list and all(type(number) is int for number in value)


def _check_coverage(tensors: Mapping[str, TensorEntry], offset: int, size: int) -> None:
    """Check that the tensors' bytes follow each other from `offset` to `size`."""
    in_order = sorted(
        tensors.items(), key=lambda item: (item[1].data_offset, item[1].data_offset + item[1].size)
    )
    for name, entry in in_order:
        if entry.data_offset != offset:
            raise UnreadableCheckpoint(
                f"the bytes of tensor {name[:80]!r} do not follow those before it: the file has a hole or an overlap"
            )
        offset += entry.size
    if offset != size:
        raise UnreadableCheckpoint(
            f"the tensors end at byte {offset} and the file at {size}: it is cut off, or has other bytes behind"
        )

"""Lays out a safetensors file, as pieces: tensors that are as they were in the source stay ranges of it.

A safetensors file holds contiguous tensors by name and nothing else. The header names them in the order of the state
dict. Their bytes stand by size of the element, largest first, so that each is aligned (no gap is allowed); within that
in the order of the source, then the new ones by name. So the bytes of a file whose tensors are only renamed are one
range.
"""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from migrate_ckpt.absent import is_absent, refuse_absent
from migrate_ckpt.errors import UnwritableCheckpoint
from migrate_ckpt.foreign import ForeignGlobal, ForeignObject, global_path
from migrate_ckpt.formats.container import Container, Stored
from migrate_ckpt.formats.pieces import NewBytes, Pieces
from migrate_ckpt.formats.safetensors import Safetensors
from migrate_ckpt.formats.safetensors_header import (
    ALIGNMENT,
    DTYPES,
    MAX_HEADER_BYTES,
    METADATA,
    write_header,
)
from migrate_ckpt.formats.safetensors_metadata import (
    DEFAULT_TEXT,
    TIES_KEY,
    plain_text,
    write_metadata,
)
from migrate_ckpt.formats.tensors import HANDLE
from migrate_ckpt.history import ckpt_migration_key, records_key

_NAMES_SHOWN = 10
_NAMES = {getattr(torch, dtype): name for name, (dtype, _) in DTYPES.items() if dtype}


@dataclass(frozen=True, slots=True)
class _Written:
    """A tensor to write, and where its bytes begin in the source, if they are there."""

    name: str
    tensor: torch.Tensor
    source_offset: int | None

    @property
    def nbytes(self) -> int:
        return self.tensor.numel() * self.tensor.itemsize

    @property
    def order(self) -> tuple[int, bool, int, str]:
        return (
            -self.tensor.itemsize,
            self.source_offset is None,
            self.source_offset or 0,
            self.name,
        )


def lay_out_safetensors(
    value: Mapping[str, Any], base: Container
) -> tuple[Pieces, tuple[str, ...]]:
    """The pieces of the safetensors file of a state dict, and a sentence for each thing it leaves out.

    `base` is the container that the state dict was read from.

    Raises:
        UnwritableCheckpoint: It holds what safetensors cannot; names it.
        InvalidHistory: As `read_history` says.
    """
    tensors = _check_values(value)
    kept, ties = _tie(tensors)
    header = base.header if isinstance(base, Safetensors) else None
    default_text = plain_text(header.metadata) if header else DEFAULT_TEXT
    metadata = write_metadata(value, ties, default_text)
    places = _places(kept, base)
    written = {name: _Written(name, kept[name], places.get(name)) for name in kept}
    in_order = sorted(written.values(), key=lambda one: one.order)
    pieces = Pieces()
    phase = header.data_offset % ALIGNMENT if header else 0
    # In step with the source, unless its own bytes are not aligned.
    pieces.add_bytes(_header(list(kept), in_order, metadata, phase=0 if phase % 8 else phase))
    for one in in_order:
        if one.source_offset is None:
            pieces.add_bytes(_bytes_of(one.tensor))
        else:
            pieces.add_range(one.source_offset, one.nbytes)
    return pieces, (*_left_out(tensors, kept, ties), *_attributes_left_out(value))


def _check_values(value: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors by name; the history is none of them."""
    values = {
        key: found for key, found in value.items() if key not in (ckpt_migration_key, records_key)
    }
    refused = [(key, why) for key, found in values.items() if (why := _why_not(key, found))]
    if refused:
        shown = [f"{key!r:.80} ({why})" for key, why in refused[:_NAMES_SHOWN]]
        raise UnwritableCheckpoint(
            "safetensors holds plain tensors by name and nothing else. What cannot go: "
            f"{_listed(shown, len(refused))}. Drop or change it in a migration, or keep torch's format",
            where=str(refused[0][0])[:80],
        )
    return values


def _why_not(key: object, value: object) -> str | None:
    """Why a value cannot be written; None where it can."""
    if type(key) is not str or key == METADATA or not _is_text(key):
        return "not usable as a name"
    if type(value) not in (torch.Tensor, torch.nn.Parameter):
        return _kind(value)
    assert isinstance(value, torch.Tensor)
    if value.layout is not torch.strided or value.is_quantized or value.is_nested:
        return "a sparse, quantised or nested tensor"
    if value.is_meta and not is_absent(value):
        return "a tensor without bytes"
    if value.__dict__ or value._backward_hooks:
        return "a tensor with attributes or hooks"
    return None if value.dtype in _NAMES else f"a tensor of {value.dtype}"


def _kind(value: object) -> str:
    function = value.__recipe__.function if isinstance(value, ForeignObject) else value
    path = global_path(function) if isinstance(function, ForeignGlobal) else type(value).__name__
    return f"foreign, {path}" if isinstance(value, (ForeignObject, ForeignGlobal)) else path


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _tie(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors to write, and for every further name of one of them the name it is written under."""
    kept: dict[str, torch.Tensor] = {}
    ties: dict[str, str] = {}
    first_names: dict[Any, str] = {}
    for name, tensor in tensors.items():
        layout = (tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
        bits = (tensor.is_conj(), tensor.is_neg())
        first = first_names.setdefault((tensor.untyped_storage()._cdata, layout, bits), name)
        if first == name:
            kept[name] = tensor
        else:
            ties[name] = first
    return kept, ties


def _places(tensors: Mapping[str, torch.Tensor], base: Container) -> dict[str, int]:
    """Where in the source the bytes of those tensors begin that are contiguous and unchanged there."""
    stored: dict[str, Stored] = {}
    keys: dict[str, str] = {}
    for name, tensor in tensors.items():
        handle = getattr(tensor.untyped_storage(), HANDLE, None)
        if handle is not None and handle.container is base and _is_raw(tensor):
            keys[name] = handle.key
            stored[handle.key] = base.storages[handle.key]
    changed = base.mapped.changed(stored) if stored else set()
    return {
        name: stored[key].data_offset + int(tensors[name].storage_offset()) * tensors[name].itemsize
        for name, key in keys.items()
        if key not in changed
    }


def _is_raw(tensor: torch.Tensor) -> bool:
    """Whether the bytes in memory are those to write."""
    return tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()


def _header(
    names: Sequence[str], in_order: Sequence[_Written], metadata: Mapping[str, str], *, phase: int
) -> bytes:
    offset = 0
    tensors: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
    for one in in_order:
        dtype, shape = _in_safetensors(one.tensor)
        tensors[one.name] = (dtype, shape, offset, offset + one.nbytes)
        offset += one.nbytes
    header = write_header({name: tensors[name] for name in names}, metadata, phase=phase)
    if len(header) > MAX_HEADER_BYTES:
        raise UnwritableCheckpoint(
            f"the safetensors header would have {len(header)} bytes; the format's limit is {MAX_HEADER_BYTES}. Keep "
            "torch's format"
        )
    return header


def _in_safetensors(tensor: torch.Tensor) -> tuple[str, tuple[int, ...]]:
    """Dtype and shape as safetensors has them."""
    dtype, shape = _NAMES[tensor.dtype], tuple(tensor.shape)
    per_element = 8 * tensor.itemsize // DTYPES[dtype][1]
    return dtype, shape if per_element == 1 else (*shape[:-1], shape[-1] * per_element)


def _bytes_of(tensor: torch.Tensor) -> NewBytes:
    """The bytes of a tensor's elements; not copied where they lie in memory as they are written."""
    refuse_absent(tensor.untyped_storage())
    tensor = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    nbytes = tensor.numel() * tensor.itemsize
    if not nbytes:
        return b""
    array = (ctypes.c_ubyte * nbytes).from_address(tensor.data_ptr())
    array.tensor = tensor  # type: ignore[attr-defined]  # The view below keeps the array, the array the tensor.
    return memoryview(array).cast("B")


def _left_out(
    tensors: Mapping[str, torch.Tensor], kept: Mapping[str, torch.Tensor], ties: Mapping[str, str]
) -> tuple[str, ...]:
    """A sentence for each thing that the state dict has and the file has not."""
    uses: dict[int, list[str]] = {}
    for name, tensor in kept.items():
        uses.setdefault(tensor.untyped_storage()._cdata, []).append(name)
    said = {
        f"Written once; the other name is in the header, under {TIES_KEY}": [
            f"{name!r} is {first!r}" for name, first in ties.items()
        ],
        "These share memory, and are written each with bytes of their own": [
            repr(name) for names in uses.values() if len(names) > 1 for name in names
        ],
        "Safetensors does not say that a tensor is a parameter or requires gradients": [
            repr(name) for name, tensor in tensors.items() if tensor.requires_grad
        ],
        "Safetensors has no strides; these are contiguous now": [
            repr(name) for name, tensor in kept.items() if not tensor.is_contiguous()
        ],
        "Safetensors has no device tags; these are on the CPU now": [
            f"{name!r} was on {tag}" for name, tensor in kept.items() if (tag := _tag(tensor))
        ],
    }
    return tuple(
        f"{what}: {_listed(names[:_NAMES_SHOWN], len(names))}."
        for what, names in said.items()
        if names
    )


def _attributes_left_out(value: Mapping[str, Any]) -> tuple[str, ...]:
    names = [repr(name) for name in vars(value)] if isinstance(value, OrderedDict) else []
    names = [name for name in names if name != repr("_metadata")]
    if not names:
        return ()
    shown = _listed(names[:_NAMES_SHOWN], len(names))
    return (f"Attributes of the state dict that are not in the new file: {shown}.",)


def _tag(tensor: torch.Tensor) -> str | None:
    """The device tag of a tensor, None for the CPU's."""
    storage = tensor.untyped_storage()
    handle = getattr(storage, HANDLE, None)
    tag: str = handle.location if handle is not None else torch.serialization.location_tag(storage)
    return None if tag == "cpu" else tag


def _listed(names: Sequence[str], count: int) -> str:
    more = f" and {count - len(names)} more" if count > len(names) else ""
    return ", ".join(name[:200] for name in names) + more

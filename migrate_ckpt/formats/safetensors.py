"""Safetensors files: read as what a pickle of the same state dict would make.

The names become the keys of an `OrderedDict`, in the order of the header. What stands beside them in the header's
metadata becomes the state dict's `_metadata`, as `safetensors_metadata` says.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import cache, cached_property
from typing import Any

from migrate_ckpt.errors import UnreadableCheckpoint
from migrate_ckpt.foreign import ForeignGlobal
from migrate_ckpt.formats.container import Contents
from migrate_ckpt.formats.mapped import MappedSource
from migrate_ckpt.formats.pickle_reader import TensorBuilder
from migrate_ckpt.formats.plain_values import NOT_FOLDED
from migrate_ckpt.formats.safetensors_header import DTYPES, TensorEntry, read_header
from migrate_ckpt.formats.safetensors_metadata import read_metadata, read_ties
from migrate_ckpt.formats.source import FileSource

_STORAGE_TYPE = ForeignGlobal.named("torch.storage", "UntypedStorage")


class Safetensors:
    """An opened file (see `container.Container`).

    Attributes:
        source: Where its bytes come from.
        header: What its header says.
        storages: Where the bytes of each tensor are. Each has a storage of its own, whose key is a number: in a zip
            the key becomes the name of a record, and a tensor's name may be anything.
    """

    format = "safetensors"
    checksums = ()

    def __init__(self, source: FileSource) -> None:
        self.source = source
        self.header = read_header(source)
        self.storages: dict[str, TensorEntry] = {
            str(index): entry for index, entry in enumerate(self.header.tensors.values())
        }

    @cached_property
    def mapped(self) -> MappedSource:
        """The file in memory."""
        return MappedSource(self.source)

    def read(self, builder: TensorBuilder) -> Contents:
        """Make the state dict.

        Raises:
            UnreadableCheckpoint: A tensor is of a dtype or shape that torch does not have.
        """
        value: OrderedDict[str, Any] = OrderedDict()
        rebuild = builder.folds()["torch._utils", "_rebuild_tensor_v3"]
        entries = zip(self.header.tensors.items(), self.storages, strict=True)
        for (name, entry), key in entries:
            dtype, shape = _in_torch(name, entry)
            storage = builder.storage(("storage", _STORAGE_TYPE, key, "cpu", entry.size))
            layout: tuple[Any, ...] = (0, shape, _contiguous(shape), False, OrderedDict())
            value[name] = rebuild(storage, *layout, _constant(dtype, builder))
        builder.finish()
        for name, kept in read_ties(self.header).items():
            value[name] = value[kept]
        metadata = read_metadata(self.header.metadata)
        if metadata:
            vars(value)["_metadata"] = metadata
        return Contents(value)


def _constant(dtype: str, builder: TensorBuilder) -> Any:
    """What a pickle's global of the dtype is to the builder."""
    found = builder.constant("torch", dtype)
    return _foreign_dtype(dtype) if found is NOT_FOLDED else found


@cache
def _foreign_dtype(dtype: str) -> ForeignGlobal:
    return ForeignGlobal.named("torch", dtype)


def _in_torch(name: str, entry: TensorEntry) -> tuple[str, tuple[int, ...]]:
    """Dtype and shape as torch has them."""
    dtype, bits = DTYPES[entry.dtype]
    if dtype is None:
        raise UnreadableCheckpoint(
            f"tensor {name[:80]!r} is of dtype {entry.dtype}, which torch does not have"
        )
    if bits >= 8:
        return dtype, entry.shape
    if not entry.shape or entry.shape[-1] * bits % 8:
        raise UnreadableCheckpoint(
            f"the last dimension of tensor {name[:80]!r} does not fill whole bytes, as it must in torch"
        )
    return dtype, (*entry.shape[:-1], entry.shape[-1] * bits // 8)


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides = [1]
    for length in reversed(shape[1:]):
        strides.append(strides[-1] * max(length, 1))
    return tuple(reversed(strides[: len(shape)]))

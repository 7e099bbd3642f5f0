"""Answers a pickle's tensors with their outline: a file can be looked into without torch and without their bytes."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from migrate_ckpt.foreign import ForeignGlobal
from migrate_ckpt.formats.plain_values import NOT_FOLDED, Fold
from migrate_ckpt.formats.storages import QUANTISED, StorageHandle, check_layout, find_storage
from migrate_ckpt.formats.tensor_matches import Layout
from migrate_ckpt.outline import TensorOutline

if TYPE_CHECKING:
    from migrate_ckpt.formats.container import Container


class OutlineTensors:
    """Makes a `TensorOutline` of each plain tensor (see `pickle_reader.TensorBuilder`)."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self._handles: dict[tuple[str, str], StorageHandle] = {}

    def storage(self, pid: object) -> StorageHandle:
        return find_storage(pid, self._container, self._handles)

    def constant(self, module: str, name: str) -> Any:
        return NOT_FOLDED

    def folds(self) -> dict[tuple[str, str], Fold]:
        return {
            ("torch._utils", "_rebuild_tensor"): _rebuild,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
            ("torch._utils", "_rebuild_tensor_v3"): _rebuild,
            ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
            ("torch", "Size"): _size,
        }

    def plain_tensor(
        self, storage_type: ForeignGlobal, key: str, location: str, layout: Layout
    ) -> Any:
        handle = self.storage(("storage", storage_type, key, location, layout.numel))
        return _rebuild(handle, layout.offset, layout.size, layout.stride)

    def start_again(self) -> None:
        self._handles.clear()

    def finish(self) -> None:
        pass


def _rebuild(*args: Any) -> Any:
    if not (4 <= len(args) <= 7 and type(args[0]) is StorageHandle):
        return NOT_FOLDED
    handle, offset, size, stride = args[:4]
    dtype, itemsize = handle.dtype_name, handle.itemsize
    if len(args) == 7 and isinstance(args[6], ForeignGlobal):
        # Of `_rebuild_tensor_v3`: the storage is untyped, and only torch knows the size of a rare dtype.
        dtype, itemsize = args[6].__qualname__, _ITEMSIZES.get(args[6].__qualname__, 1)
    if dtype in QUANTISED:
        return NOT_FOLDED
    check_layout(handle.numel * handle.itemsize // itemsize, offset, size, stride)
    return TensorOutline(dtype, size, itemsize)


def _rebuild_parameter(*args: Any) -> Any:
    is_plain = len(args) == 3 and type(args[0]) is TensorOutline and type(args[2]) is OrderedDict
    return args[0] if is_plain else NOT_FOLDED


def _size(*args: Any) -> Any:
    return args[0] if len(args) == 1 and type(args[0]) is tuple else NOT_FOLDED


_ITEMSIZES = {
    **dict.fromkeys(("float64", "int64", "uint64", "complex64"), 8),
    **dict.fromkeys(("float32", "int32", "uint32", "complex32"), 4),
    **dict.fromkeys(("float16", "bfloat16", "int16", "uint16"), 2),
    "complex128": 16,
}

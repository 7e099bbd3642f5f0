"""Makes torch tensors over the mapped bytes of a source.

A tensor is built from its storage, offset, size and stride after these were checked with Python's integers; everything
else that torch can rebuild (sparse, quantised, subclasses, hooks) stays a foreign object, whose bytes are carried along
untouched.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from migrate_ckpt.absent import mark_absent
from migrate_ckpt.errors import UnsafePickle
from migrate_ckpt.foreign import ForeignGlobal
from migrate_ckpt.formats.partial_source import AbsentRange
from migrate_ckpt.formats.plain_values import NOT_FOLDED, Fold
from migrate_ckpt.formats.storages import (
    QUANTISED,
    STORAGE_TYPES,
    StorageHandle,
    check_layout,
    find_storage,
    handle_of,
)
from migrate_ckpt.formats.tensor_matches import Layout

if TYPE_CHECKING:
    from migrate_ckpt.formats.container import Container
    from migrate_ckpt.formats.partial_source import PartialSource

SMALL_BYTES = 1 << 12

# Where a torch storage that is mapped from a source keeps its storage handle: torch gives the same Python object
# for a storage as long as the storage lives.
HANDLE = "_migrate_ckpt_handle"

_DTYPES = {
    f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)
}
_DTYPES_BY_NAME = {
    name: getattr(torch, name) for name, _ in STORAGE_TYPES.values() if name not in QUANTISED
}


def _refuse(self: object, *args: object) -> NoReturn:
    raise UnsafePickle("the pickle changes a tensor while it is loaded")


_GUARDS = {
    **dict.fromkeys(("__setstate__", "__setitem__", "append", "extend", "add"), _refuse),
    "__torch_function__": torch._C._disabled_torch_function_impl,
}
# While the pickle is read, its opcodes must not reach methods of real tensors.
_GuardedTensor = type("_GuardedTensor", (torch.Tensor,), dict(_GUARDS))
_GuardedParameter = type("_GuardedParameter", (torch.nn.Parameter,), dict(_GUARDS))


class MappedTensors:
    """Builds the tensors of one container (see `pickle_reader.TensorBuilder`)."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self._handles: dict[tuple[str, str], StorageHandle] = {}
        self._storages: dict[str, torch.UntypedStorage] = {}
        self._guarded: list[torch.Tensor] = []
        self._hooks: list[OrderedDict[Any, Any]] = []
        self._checked_layouts: set[Layout] = set()
        self._storage_types: set[ForeignGlobal] = set()

    def storage(self, pid: object) -> StorageHandle:
        return find_storage(pid, self._container, self._handles)

    def constant(self, module: str, name: str) -> Any:
        return _DTYPES.get(f"{module}.{name}", NOT_FOLDED)

    def folds(self) -> dict[tuple[str, str], Fold]:
        return {
            ("torch._utils", "_rebuild_tensor"): self._rebuild_v1,
            ("torch._utils", "_rebuild_tensor_v2"): self._rebuild_v2,
            ("torch._utils", "_rebuild_tensor_v3"): self._rebuild_v3,
            ("torch._utils", "_rebuild_parameter"): self._rebuild_parameter,
            ("torch", "Size"): _size,
            ("torch", "device"): _device,
        }

    def plain_tensor(
        self, storage_type: ForeignGlobal, key: str, location: str, layout: Layout
    ) -> Any:
        handle = self._handle(storage_type, key, location, layout.numel)
        if handle.dtype_name in QUANTISED:
            return NOT_FOLDED
        if layout not in self._checked_layouts:
            check_layout(layout.numel, layout.offset, layout.size, layout.stride)
            self._checked_layouts.add(layout)
        dtype = _DTYPES_BY_NAME[handle.dtype_name]
        if layout.is_whole and handle.key not in self._storages and layout.numel:
            tensor = self._mapped(handle, dtype, layout.numel)
            self._keep_storage(handle, tensor.untyped_storage())
        else:
            storage = self.mapped_storage(handle)
            tensor = torch.empty(0, dtype=dtype, device=storage.device)
            tensor.set_(storage, layout.offset, layout.size, layout.stride)
        if layout.requires_grad:
            tensor.requires_grad_()
        return self._guard(tensor, _GuardedTensor)

    def start_again(self) -> None:
        self._handles.clear()
        self._storages.clear()
        self._guarded.clear()
        self._hooks.clear()

    def finish(self) -> None:
        if any(self._hooks):
            raise UnsafePickle("the pickle gives a tensor hooks after it was built")
        for tensor in self._guarded:
            tensor.__class__ = (
                torch.nn.Parameter if type(tensor) is _GuardedParameter else torch.Tensor
            )

    def _rebuild_v1(self, *args: Any) -> Any:
        return self._rebuild_v2(*args, False, OrderedDict()) if len(args) == 4 else NOT_FOLDED

    def _rebuild_v2(self, *args: Any) -> Any:
        if len(args) != 6 or type(args[0]) is not StorageHandle or args[0].dtype_name in QUANTISED:
            return NOT_FOLDED
        return self._rebuild(*args, dtype=getattr(torch, args[0].dtype_name))

    def _rebuild_v3(self, *args: Any) -> Any:
        if len(args) != 7 or type(args[0]) is not StorageHandle or type(args[6]) is not torch.dtype:
            return NOT_FOLDED
        if str(args[6]).removeprefix("torch.") in QUANTISED:
            return NOT_FOLDED
        return self._rebuild(*args[:6], dtype=args[6])

    def _rebuild(
        self,
        handle: StorageHandle,
        offset: object,
        size: object,
        stride: object,
        requires_grad: object,
        hooks: object,
        *,
        dtype: torch.dtype,
    ) -> Any:
        if (
            type(hooks) is not OrderedDict
            or hooks
            or vars(hooks)
            or type(requires_grad) is not bool
        ):
            return NOT_FOLDED
        size = tuple(size) if type(size) is torch.Size else size
        check_layout(handle.numel * handle.itemsize // dtype.itemsize, offset, size, stride)
        storage = self.mapped_storage(handle)
        tensor = torch.empty(0, dtype=dtype, device=storage.device)
        tensor.set_(storage, offset, size, stride)  # type: ignore[call-overload]
        tensor.requires_grad_(requires_grad)
        self._hooks.append(hooks)
        return self._guard(tensor, _GuardedTensor)

    def _rebuild_parameter(self, *args: Any) -> Any:
        if len(args) != 3 or type(args[0]) is not _GuardedTensor or type(args[1]) is not bool:
            return NOT_FOLDED
        if type(args[2]) is not OrderedDict or args[2] or vars(args[2]):
            return NOT_FOLDED
        self._hooks.append(args[2])
        data: Any = args[0]
        parameter = torch.Tensor._make_subclass(torch.nn.Parameter, data, args[1])
        return self._guard(parameter, _GuardedParameter)

    def _guard(self, tensor: torch.Tensor, guard: type) -> torch.Tensor:
        tensor.__class__ = guard
        self._guarded.append(tensor)
        return tensor

    def _handle(
        self, storage_type: ForeignGlobal, key: str, location: str, numel: int
    ) -> StorageHandle:
        if storage_type in self._storage_types:
            return handle_of(storage_type, key, location, numel, self._container, self._handles)
        handle = self.storage(("storage", storage_type, key, location, numel))
        self._storage_types.add(storage_type)
        return handle

    def mapped_storage(self, handle: StorageHandle) -> torch.UntypedStorage:
        """The storage over the bytes that a handle names; the same one each time."""
        storage = self._storages.get(handle.key)
        if storage is None:
            size = self._container.storages[handle.key].size
            storage = (
                self._mapped(handle, torch.uint8, size).untyped_storage() if size else self._empty()
            )
            self._keep_storage(handle, storage)
        return storage

    def _mapped(self, handle: StorageHandle, dtype: torch.dtype, count: int) -> torch.Tensor:
        """A tensor in one dimension over all of the storage's bytes."""
        mapped = self._container.mapped
        offset = mapped.shift + self._container.storages[handle.key].data_offset
        return torch.frombuffer(mapped.memory, dtype=dtype, count=count, offset=offset)

    def _empty(self) -> torch.UntypedStorage:
        return torch.UntypedStorage(0)  # type: ignore[no-untyped-call]

    def _keep_storage(self, handle: StorageHandle, storage: torch.UntypedStorage) -> None:
        setattr(storage, HANDLE, handle)
        self._storages[handle.key] = storage


class MetaTensors(MappedTensors):
    """Builds tensors of the same layout without bytes: views and ties are kept, and no data of the source is read."""

    def _mapped(self, handle: StorageHandle, dtype: torch.dtype, count: int) -> torch.Tensor:
        return torch.empty(count, dtype=dtype, device="meta")

    def _empty(self) -> torch.UntypedStorage:
        return torch.UntypedStorage(0, device="meta")  # type: ignore[no-untyped-call]


class PartialTensors(MappedTensors):
    """Builds tensors of a file that is there in part: mapped ones, and where their bytes are not there, absent ones.

    Small storages are needed in any case: an optimizer's steps are compared.
    """

    def __init__(self, container: Container, source: PartialSource) -> None:
        super().__init__(container)
        self._source = source

    def _mapped(self, handle: StorageHandle, dtype: torch.dtype, count: int) -> torch.Tensor:
        stored = self._container.storages[handle.key]
        if self._source.has(stored.data_offset, stored.size):
            return super()._mapped(handle, dtype, count)
        if stored.size <= SMALL_BYTES:
            self._source.note(stored.data_offset, stored.size)
        tensor = torch.empty(count, dtype=dtype, device="meta")
        absent = AbsentRange(self._source, stored.data_offset, stored.size)
        mark_absent(tensor.untyped_storage(), absent)
        return tensor


def _size(*args: Any) -> Any:
    is_size = (
        len(args) == 1 and type(args[0]) is tuple and all(type(part) is int for part in args[0])
    )
    return torch.Size(args[0]) if is_size else NOT_FOLDED


def _device(*args: Any) -> Any:
    if not (args and type(args[0]) is str and all(type(index) is int for index in args[1:])):
        return NOT_FOLDED
    try:
        return torch.device(*args)
    except (RuntimeError, OverflowError):
        return NOT_FOLDED

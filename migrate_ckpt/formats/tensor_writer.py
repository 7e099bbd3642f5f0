"""Says how torch's values are pickled, and collects the storages that the pickle names.

The same functions of `torch._utils` as torch's own `Tensor.__reduce_ex__`: `_rebuild_tensor_v2` with a typed storage,
and `_rebuild_tensor_v3` with an untyped one for a dtype that has no typed storage or a second dtype of one storage.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from migrate_ckpt.absent import is_absent, refuse_absent
from migrate_ckpt.errors import UnwritableCheckpoint
from migrate_ckpt.foreign import ForeignGlobal, global_path
from migrate_ckpt.formats.opcodes import PlainTensor
from migrate_ckpt.formats.pieces import NewBytes
from migrate_ckpt.formats.storages import STORAGE_TYPES, StorageHandle
from migrate_ckpt.formats.tensors import HANDLE

if TYPE_CHECKING:
    from migrate_ckpt.formats.container import Container

_TYPE_OF_DTYPE = {
    getattr(torch, dtype): path
    for path, (dtype, _) in STORAGE_TYPES.items()
    if not path.endswith("UntypedStorage")
}
_UNTYPED = "torch.storage.UntypedStorage"


class WrittenStorage:
    """One storage that the pickle names.

    Attributes:
        key: Name of its record below `data/`.
        location: Its device tag.
        container: Where it was read from: the container that the new file is made from, or another one.
        source_key: Its key there.
        storage: The torch storage; None for one that only a foreign object refers to.
    """

    __slots__ = ("container", "dtype", "handles", "key", "location", "source_key", "storage")

    def __init__(self, key: str, location: str) -> None:
        self.key = key
        self.location = location
        self.container: Container | None = None
        self.source_key = key
        self.storage: torch.UntypedStorage | None = None
        self.dtype: torch.dtype | None = None
        self.handles: dict[str, StorageHandle] = {}

    def bytes(self) -> NewBytes:
        """The bytes as they are now; not copied where they lie in memory."""
        if self.storage is None:
            assert self.container is not None
            entry = self.container.storages[self.source_key]
            return self.container.source.read(entry.data_offset, entry.size)
        refuse_absent(self.storage)
        storage = self.storage if self.storage.device.type == "cpu" else self.storage.cpu()  # type: ignore[no-untyped-call]
        if not storage.nbytes():
            return b""
        array = (ctypes.c_ubyte * storage.nbytes()).from_address(storage.data_ptr())
        array.storage = storage  # type: ignore[attr-defined]  # The view below keeps the array, the array the storage.
        return memoryview(array).cast("B")


class TensorWriter:
    """Reduces tensors and storages (see `pickle_writer.TensorReducer`).

    Attributes:
        base: The container that the new file is made from: the one given, or the first that a storage was read from.
            Its storages keep their keys where these are free, so that their records can be kept too.
    """

    def __init__(self, base: Container | None = None) -> None:
        self.base = base
        self._next_key = 0
        self._by_identity: dict[int | tuple[int, str], WrittenStorage] = {}
        self._by_key: dict[str, WrittenStorage] = {}
        self._globals: dict[str, ForeignGlobal] = {}

    @property
    def storages(self) -> list[WrittenStorage]:
        """In order of first use."""
        return list(self._by_key.values())

    def unchanged_keys(self) -> set[str]:
        """Keys of the storages that come from the base and are in memory as they are there."""
        own = {
            used.key: used
            for used in self.storages
            if used.container is self.base and used.key == used.source_key
        }
        if self.base is None or not own:
            return set()
        loaded = {
            key: self.base.storages[key] for key, used in own.items() if used.storage is not None
        }
        return own.keys() - (self.base.mapped.changed(loaded) if loaded else set())

    def reducers(self) -> dict[type, Callable[[Any], Any]]:
        return {
            torch.Tensor: self._tensor,
            torch.nn.Parameter: self._parameter,
            torch.UntypedStorage: self._untyped_storage,
        }

    def reducer_of(self, obj: object) -> Callable[[Any], Any] | None:
        if isinstance(obj, torch.storage.TypedStorage):
            return self._typed_storage
        return _as_torch_does if isinstance(obj, torch.Tensor) else None

    def written_as(self, handle: StorageHandle) -> StorageHandle:
        if handle.container is None:
            return handle
        used = self._by_identity.get((id(handle.container), handle.key)) or self._note(handle, None)
        return self._handle(used, global_path(handle.type), handle.numel)

    def _tensor(self, tensor: torch.Tensor) -> Any:
        return self._plain(tensor, is_parameter=False)

    def _parameter(self, parameter: torch.nn.Parameter) -> Any:
        return self._plain(parameter, is_parameter=True)

    def _plain(self, tensor: torch.Tensor, *, is_parameter: bool) -> Any:
        if tensor.__dict__ or tensor._backward_hooks or not _is_plain(tensor):
            return _as_torch_does(tensor)
        storage, dtype = tensor.untyped_storage(), tensor.dtype
        _check_reach(tensor, storage)
        used = self._use(storage)
        if used.dtype is None and dtype in _TYPE_OF_DTYPE:
            used.dtype = dtype
        is_typed = used.dtype is dtype
        path, itemsize = (_TYPE_OF_DTYPE[dtype], dtype.itemsize) if is_typed else (_UNTYPED, 1)
        return PlainTensor(
            self._handle(used, path, storage.nbytes() // itemsize),
            int(tensor.storage_offset()),
            tuple(tensor.shape),
            tensor.stride(),
            tensor.requires_grad,
            None if is_typed else str(dtype).removeprefix("torch."),
            is_parameter,
        )

    def _untyped_storage(self, storage: torch.UntypedStorage) -> StorageHandle:
        return self._handle(self._use(storage), _UNTYPED, storage.nbytes())

    def _typed_storage(self, storage: torch.storage.TypedStorage) -> StorageHandle:
        path = _TYPE_OF_DTYPE.get(storage.dtype, _UNTYPED)
        return self._handle(self._use(storage._untyped_storage), path, storage._size())  # type: ignore[no-untyped-call]

    def _use(self, storage: torch.UntypedStorage) -> WrittenStorage:
        used = self._by_identity.get(storage._cdata)
        if used is None:
            handle: StorageHandle | None = getattr(storage, HANDLE, None)
            if handle is None:
                used = self._by_identity[storage._cdata] = WrittenStorage(
                    self._new_key(), torch.serialization.location_tag(storage)
                )
                used.storage = storage
                self._by_key[used.key] = used
            else:
                used = self._by_identity[storage._cdata] = self._note(handle, storage)
        return used

    def _note(self, handle: StorageHandle, storage: torch.UntypedStorage | None) -> WrittenStorage:
        """Note a storage that was read from a container, by the way of a tensor or of a foreign object, or of both."""
        assert handle.container is not None
        self.base = self.base or handle.container
        identity = (id(handle.container), handle.key)
        used = self._by_identity.get(identity)
        if used is None:
            # A storage that was made anew may have taken the key before the base was known.
            keeps_key = handle.container is self.base and handle.key not in self._by_key
            key = handle.key if keeps_key else self._new_key()
            used = self._by_identity[identity] = self._by_key[key] = WrittenStorage(
                key, handle.location
            )
            used.container, used.source_key = handle.container, handle.key
            if keeps_key:
                used.handles[global_path(handle.type)] = handle
        if storage is not None:
            used.storage = storage
        return used

    def _handle(self, used: WrittenStorage, path: str, numel: int) -> StorageHandle:
        if path not in used.handles:
            used.handles[path] = StorageHandle(
                self._global(path), used.key, used.location, numel, None
            )
        return used.handles[path]

    def _global(self, path: str) -> ForeignGlobal:
        if path not in self._globals:
            self._globals[path] = ForeignGlobal.named(*path.rsplit(".", 1))
        return self._globals[path]

    def _new_key(self) -> str:
        taken = self.base.storages if self.base else {}
        while (key := str(self._next_key)) in taken or key in self._by_key:
            self._next_key += 1
        return key


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether storage, offset, size, stride and dtype say all there is to say of a tensor."""
    return (
        tensor.layout is torch.strided
        and (tensor.is_cpu or tensor.device.type in ("cuda", "mps") or is_absent(tensor))
        and not (tensor.is_quantized or tensor.is_nested or tensor.is_conj() or tensor.is_neg())
    )


def _check_reach(tensor: torch.Tensor, storage: torch.UntypedStorage) -> None:
    """Refuse a tensor that nobody could load, as a `resize_` that failed leaves it."""
    count = tensor.numel()
    if count and not tensor.is_contiguous():
        count = 1 + sum(
            (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
        )
    if count and (tensor.storage_offset() + count) * tensor.itemsize > storage.nbytes():
        raise UnwritableCheckpoint(
            f"a tensor of shape {tuple(tensor.shape)} reaches out of its storage of {storage.nbytes()} bytes, as a "
            "resize_ that failed leaves it. Make a new tensor"
        )


def _as_torch_does(tensor: torch.Tensor) -> Any:
    return tensor.__reduce_ex__(2)  # type: ignore[no-untyped-call]

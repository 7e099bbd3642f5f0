"""Copies a checkpoint in memory without copying what its tensors hold.

Containers and objects are copied. Storages are shared, each once, so that ties and views stay ties and views of each
other:

* what torch allocated is shared copy-on-write: torch copies the bytes when either side writes to them first;
* what was read from a checkpoint is mapped from its file once more (`migrate_ckpt.formats.twins`);
* other foreign memory (NumPy arrays, shared memory) cannot be shared so, and is copied once; and so are storages that
  stand in a checkpoint by themselves, without a tensor.
"""

from __future__ import annotations

import copy
import logging
import sys
from itertools import islice
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from migrate_ckpt.formats.storages import TWINS, StorageHandle
from migrate_ckpt.formats.tensors import HANDLE
from migrate_ckpt.formats.twins import Twins
from migrate_ckpt.outline import each_once

logger = logging.getLogger(__name__)

_MAX_NAMES = 5
_COPY_PARAMETER = torch.nn.Parameter.__deepcopy__.__code__


def copy_sharing_storages(value: Any) -> Any:
    """A deep copy that is independent of the value, whoever writes to which of the two.

    A NumPy array made of a tensor before the call still writes into both. A storage that is shared cannot be resized
    before it was written to: torch ends `resize_` and `out=` of another size with an internal error there (2.13). What
    had to be copied after all is logged on the level INFO, with the names of the first tensors that it was.
    """
    shared = _SharedStorages()
    memo: dict[Any, Any] = {TWINS: shared.twins, "torch": shared.by_cdata}
    with shared:
        twin = copy.deepcopy(value, memo)
        shared.finish_parameters(memo)
    if shared.copied_bytes or shared.copied_tensors:
        copied = (path for path, each in each_once(value) if shared.is_copied(each))
        names = [".".join(path) for path in islice(copied, _MAX_NAMES + 1)]
        logger.info(
            "copied %d bytes that cannot be shared or were written to, and %d tensors of special kinds%s%s%s",
            shared.copied_bytes,
            len(shared.copied_tensors),
            ": " if names else "",
            ", ".join(names[:_MAX_NAMES]),
            " and others" if len(names) > _MAX_NAMES else "",
        )
    return twin


class _SharedStorages(TorchFunctionMode):
    """Answers the copying of tensors, while it is on, with tensors on shared storages.

    Attributes:
        twins: The storages that are mapped from files.
        by_cdata: The storages of the copy by the address of the original: torch's own memo, where it keeps those that
            it copies by itself.
        copied_tensors: Identities of the tensors that torch copied its own way.
    """

    def __init__(self) -> None:
        super().__init__()
        self.twins = Twins()
        self.by_cdata: dict[int, torch.UntypedStorage] = {}
        self.copied_tensors: set[int] = set()
        # An address is only good while its owner lives.
        self._shared: dict[int, torch.UntypedStorage] = {}
        self._copied: dict[int, torch.UntypedStorage] = {}
        self._parameters: dict[int, torch.Tensor] = {}

    @property
    def copied_bytes(self) -> int:
        own = self.by_cdata.keys() - self._shared.keys()
        copied = [*self._copied.values(), *(self.by_cdata[address] for address in own)]
        return sum(storage.nbytes() for storage in copied)

    def is_copied(self, value: Any) -> bool:
        """Whether the bytes of a tensor or storage of the original were copied."""
        if isinstance(value, torch.Tensor):
            return id(value) in self.copied_tensors or self._is_copied(_storage_of(value))
        if isinstance(value, torch.storage.TypedStorage):
            value = value._untyped_storage
        return isinstance(value, torch.UntypedStorage) and self._is_copied(value)

    def finish_parameters(self, memo: dict[Any, Any]) -> None:
        """Give parameters their gradients and attributes, which torch leaves behind."""
        while self._parameters:
            address, parameter = self._parameters.popitem()
            twin = memo.get(address)
            if isinstance(twin, torch.nn.Parameter):
                _copy_rest(parameter, twin, memo)

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.Tensor.__deepcopy__:
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = self._twin(tensor, memo)
            return memo[id(tensor)]
        # Only there: whoever else clones a tensor, in a `__deepcopy__` of his own, means a clone.
        caller = sys._getframe(1)
        if caller.f_code is _COPY_PARAMETER:
            self._parameters[id(caller.f_locals["self"])] = caller.f_locals["self"]
            if func is torch.Tensor.clone and _can_share(args[0]):
                return self._on_shared_storage(args[0])
        return func(*args, **(kwargs or {}))

    def _twin(self, tensor: torch.Tensor, memo: dict[int, Any]) -> torch.Tensor:
        if type(tensor) is not torch.Tensor or not _can_share(tensor):
            self.copied_tensors.add(id(tensor))
            try:
                copied: torch.Tensor = torch.Tensor.__deepcopy__(tensor, memo)  # type: ignore[no-untyped-call]
            except (NotImplementedError, RuntimeError):
                # Of kinds without a storage, and of what was computed, torch makes clones only.
                copied = tensor.detach().clone().requires_grad_(tensor.requires_grad)
            return copied
        twin = self._on_shared_storage(tensor)
        if tensor.requires_grad:
            twin.requires_grad_()
        # Before what it holds, which may lead back to it.
        memo[id(tensor)] = twin
        _copy_rest(tensor, twin, memo)
        return twin

    def _on_shared_storage(self, tensor: torch.Tensor) -> torch.Tensor:
        twin = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        with torch.no_grad():
            twin.set_(
                self._storage(tensor.untyped_storage()),
                tensor.storage_offset(),
                tensor.shape,
                tensor.stride(),
            )
            twin = twin.conj() if tensor.is_conj() else twin
            return torch._neg_view(twin) if tensor.is_neg() else twin

    def _storage(self, storage: torch.UntypedStorage) -> torch.UntypedStorage:
        address = storage._cdata
        if address not in self.by_cdata:
            self.by_cdata[address] = self._share(storage)
            self._shared[address] = storage
        return self.by_cdata[address]

    def _share(self, storage: torch.UntypedStorage) -> torch.UntypedStorage:
        if storage.device.type == "meta":
            return storage
        handle: StorageHandle | None = getattr(storage, HANDLE, None)
        mapped = None if handle is None else self.twins.storage(handle, storage)
        if handle is not None and mapped is not None:
            if self.twins.is_changed(handle):
                self._copied[storage._cdata] = storage
            return mapped
        whole = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
        try:
            return torch._lazy_clone(whole).untyped_storage()
        except RuntimeError:
            self._copied[storage._cdata] = storage
            return whole.clone().untyped_storage()

    def _is_copied(self, storage: torch.UntypedStorage | None) -> bool:
        address = None if storage is None else storage._cdata
        return address in self._copied or (address in self.by_cdata and address not in self._shared)


def _copy_rest(tensor: torch.Tensor, twin: torch.Tensor, memo: dict[Any, Any]) -> None:
    """Copy what a tensor has beside its values."""
    if tensor.is_leaf and tensor.grad is not None:
        twin.grad = copy.deepcopy(tensor.grad, memo)
    if tensor.__dict__:
        twin.__dict__ = copy.deepcopy(tensor.__dict__, memo)


def _storage_of(tensor: torch.Tensor) -> torch.UntypedStorage | None:
    return tensor.untyped_storage() if tensor.layout is torch.strided else None


def _can_share(tensor: torch.Tensor) -> bool:
    """Whether storage, offset, size, stride, dtype and two marks say all there is to say of a tensor's values."""
    return (
        tensor.layout is torch.strided
        and tensor.device.type in ("cpu", "cuda", "meta")
        and not (tensor.is_quantized or tensor.is_nested)
    )

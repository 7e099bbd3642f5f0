"""Copies a checkpoint in memory without copying what its tensors hold.

Containers and objects are copied. Storages that torch allocated are shared copy-on-write, each once, so that ties and
views stay ties and views of each other; the bytes are copied when either side writes to them first. Foreign memory
(mapped files, NumPy arrays, shared memory) cannot be shared so and is copied once.
"""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

logger = logging.getLogger(__name__)


def copy_sharing_storages(value: Any) -> Any:
    """A deep copy that is independent of the value, whoever writes to which of the two.

    A NumPy array made of a tensor before the call still writes into both. What had to be copied after all is logged
    on the level INFO.
    """
    with _SharedStorages() as shared:
        twin = copy.deepcopy(value)
    if shared.copied_bytes or shared.copied_tensors:
        logger.info(
            "copied %d bytes whose memory cannot be shared, and %d tensors of special kinds",
            shared.copied_bytes,
            shared.copied_tensors,
        )
    return twin


class _SharedStorages(TorchFunctionMode):
    """Answers the copying of tensors, while it is on, with tensors on shared storages."""

    def __init__(self) -> None:
        super().__init__()
        self.copied_bytes = 0
        self.copied_tensors = 0
        # The storages are kept with their twins: an identity is only good while its owner lives.
        self._twins: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

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
        # How `Parameter.__deepcopy__` copies its data.
        if func is torch.Tensor.clone and type(args[0]) is torch.Tensor and _is_plain(args[0]):
            return self._on_shared_storage(args[0])
        return func(*args, **(kwargs or {}))

    def _twin(self, tensor: torch.Tensor, memo: dict[int, Any]) -> torch.Tensor:
        if type(tensor) is not torch.Tensor or not _is_plain(tensor):
            self.copied_tensors += 1
            copied: torch.Tensor = torch.Tensor.__deepcopy__(tensor, memo)  # type: ignore[no-untyped-call]
            return copied
        twin = self._on_shared_storage(tensor)
        if tensor.requires_grad:
            twin.requires_grad_()
        if tensor.is_leaf and tensor.grad is not None:
            twin.grad = copy.deepcopy(tensor.grad, memo)
        twin.__dict__ = copy.deepcopy(tensor.__dict__, memo)
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
        return twin

    def _storage(self, storage: torch.UntypedStorage) -> torch.UntypedStorage:
        known = self._twins.get(storage._cdata)
        if known is None:
            self._twins[storage._cdata] = known = (storage, self._shared(storage))
        return known[1]

    def _shared(self, storage: torch.UntypedStorage) -> torch.UntypedStorage:
        whole = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
        try:
            return torch._lazy_clone(whole).untyped_storage()
        except RuntimeError:
            self.copied_bytes += storage.nbytes()
            return whole.clone().untyped_storage()


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether storage, offset, size, stride and dtype say all there is to say of a tensor's values."""
    return (
        tensor.layout is torch.strided
        and tensor.device.type in ("cpu", "cuda")
        and not (tensor.is_quantized or tensor.is_nested or tensor.is_conj() or tensor.is_neg())
    )

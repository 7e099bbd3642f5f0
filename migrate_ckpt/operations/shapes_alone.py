"""What operations do to tensors without bytes, where torch would take a second over a shape.

Some of torch's rules for its device `meta` are written in Python, as those of `torch.cat`, `torch.stack` and
multiplication are; the first that is used imports torch's compiler. What is made has the shape and dtype that torch
gives, and is contiguous.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def join(tensors: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
    """Return what `torch.cat` makes of tensors of one dtype, whose shapes differ along `dim` alone."""
    import torch

    if not any(tensor.is_meta for tensor in tensors):
        return torch.cat(list(tensors), dim)
    shape = list(tensors[0].shape)
    shape[dim] = sum(tensor.shape[dim] for tensor in tensors)
    return torch.empty(shape, dtype=tensors[0].dtype, device="meta")


def stack(tensors: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
    """Return what `torch.stack` makes of tensors of one dtype and one shape."""
    import torch

    if not any(tensor.is_meta for tensor in tensors):
        return torch.stack(list(tensors), dim)
    return join([tensor.unsqueeze(dim) for tensor in tensors], dim)


def scale(tensor: torch.Tensor, factor: float, shift: float) -> torch.Tensor:
    """Return a floating-point or complex tensor multiplied by a factor, and moved by a number, in its dtype."""
    import torch

    if tensor.is_meta:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    made = tensor * factor
    return made + shift if shift else made

"""Hashes of what tensors hold, whole or slice by slice, in memory that does not grow with them.

The bits of an element are read as an integer and multiplied with a pseudo-random odd number for its place along each
dimension; the hash is the sum of all, modulo 2^64. So a slice is hashed without being copied, whichever way it is cut,
and a view with its dimensions in another order has the hash that its copy would have. Equal hashes are a hint that is
quick to find; whether the bits are equal is looked at where it counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

BLOCK_ELEMENTS = 1 << 19

_GOLDEN = -0x61C8864680B583EB
_MIXERS = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)


def hash_whole(tensor: torch.Tensor) -> int:
    """Return the hash of all elements at their places; the shape and dtype are not in it."""
    return int(_sums(tensor, None))


def hash_slices(tensor: torch.Tensor, dim: int) -> list[int]:
    """Return for each index along a dimension the hash that the tensor at this index has by itself."""
    sums: list[int] = _sums(tensor, dim).tolist()
    return sums


def is_constant(tensor: torch.Tensor) -> bool:
    """Tell whether all elements have the same bits; so it is with none, or one."""
    if tensor.numel() < 2:
        return True
    first = _bits(tensor[(slice(0, 1),) * tensor.dim()]).reshape(())
    return all(bool((bits == first).all()) for _, _, bits in _blocks(tensor))


def _sums(tensor: torch.Tensor, kept: int | None) -> torch.Tensor:
    import torch

    tensor = tensor.detach()
    total = torch.zeros(() if kept is None else tensor.shape[kept], dtype=torch.int64)
    if not tensor.numel():
        return total
    streams = [dim for dim in range(tensor.dim()) if dim != kept]
    for cut, start, bits in _blocks(tensor):
        stop = start + (bits.shape[cut] if bits.dim() else 1)
        for dim in reversed(streams):
            weights = _weights(streams.index(dim), start if dim == cut else 0, bits.shape[dim])
            after = bits.dim() - dim - 1
            bits = (bits * weights.reshape(-1, *[1] * after)).sum(dim)
        if kept is not None and kept == cut:
            total[start:stop] += bits
        else:
            total += bits
    return total


def _blocks(tensor: torch.Tensor) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Yield the bits in blocks of bounded size, each with the dimension that is cut and the place of the cut."""
    tensor = tensor.detach()
    if not tensor.dim():
        yield 0, 0, _bits(tensor)
        return
    cut = _cut(tensor.shape, tensor.numel())
    step = max(1, BLOCK_ELEMENTS * tensor.shape[cut] // tensor.numel())
    for start in range(0, tensor.shape[cut], step):
        length = min(step, tensor.shape[cut] - start)
        yield cut, start, _bits(tensor.narrow(cut, start, length))


def _cut(shape: Sequence[int], numel: int) -> int:
    """Return the first dimension of whose slices one is small enough, or else the longest."""
    fitting = [dim for dim, size in enumerate(shape) if numel // size <= BLOCK_ELEMENTS]
    return min(fitting, default=max(range(len(shape)), key=shape.__getitem__))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bits of each element as an integer of 64."""
    import torch

    tensor = tensor.resolve_conj().resolve_neg()
    if tensor.dtype == torch.complex128:
        real, imaginary = torch.view_as_real(tensor).view(torch.int64).unbind(-1)
        return real * _GOLDEN + imaginary
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.view(integers[tensor.element_size()]).to(torch.int64)


@lru_cache(maxsize=64)
def _weights(stream: int, start: int, count: int) -> torch.Tensor:
    """Return odd numbers for the places from `start` on, by the mixing function of SplitMix64 (Steele et al., 2014)."""
    import torch

    mixed = torch.arange(start + 1, start + count + 1, dtype=torch.int64) * _GOLDEN
    mixed += (stream + 1) * 0x2545F4914F6CDD1D
    for shift, factor in zip((30, 27), _MIXERS, strict=True):
        mixed = (mixed ^ (mixed >> shift)) * factor
    return (mixed ^ (mixed >> 31)) | 1

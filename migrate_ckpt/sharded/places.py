"""Where the parts of a value stand, and whether those of a tensor make all of it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from migrate_ckpt.foreign import ForeignObject

MAX_PARTS_ABREAST = 1024
"""Of a tensor that is cut in two dimensions: on a square of a million devices there are no more."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a part of a value stands.

    Attributes:
        file: The name of the file.
        offset: The first byte.
        length: How many there are.
        starts: Where in the tensor the part begins, in each dimension; empty for what is no tensor.
        sizes: The lengths of the part.
        index: The `MetadataIndex` that names it.
        info: The `_StorageInfo` that says so.
    """

    file: str
    offset: int
    length: int
    starts: tuple[int, ...]
    sizes: tuple[int, ...]
    index: ForeignObject
    info: ForeignObject


def cover(shape: tuple[int, ...], parts: Iterable[Place], itemsize: int) -> bool:
    """Tell whether parts fill a shape, each element once, and their bytes are in the file."""
    listed = list(parts)
    within = all(
        len(p.starts) == len(p.sizes) == len(shape)
        and math.prod(p.sizes) * itemsize <= p.length
        and all(
            type(size) is int and start >= 0 and size >= 0 and start + size <= whole
            for start, size, whole in zip(p.starts, p.sizes, shape, strict=True)
        )
        for p in listed
    )
    is_full = within and sum(math.prod(p.sizes) for p in listed) == math.prod(shape)
    return is_full and not _overlap([p for p in listed if math.prod(p.sizes)])


def _overlap(parts: list[Place]) -> bool:
    """Tell whether parts of a tensor have elements in common, or are cut as by no sharding."""
    if len(parts) < 2:
        return False
    # Along the dimension that has been cut into most parts, fewest reach over the beginning of another.
    dim = max(range(len(parts[0].starts)), key=lambda dim: len({p.starts[dim] for p in parts}))
    reaching: list[Place] = []
    for part in sorted(parts, key=lambda p: p.starts[dim]):
        reaching = [p for p in reaching if p.starts[dim] + p.sizes[dim] > part.starts[dim]]
        if len(reaching) > MAX_PARTS_ABREAST or any(_meet(part, other) for other in reaching):
            return True
        reaching.append(part)
    return False


def _meet(one: Place, other: Place) -> bool:
    return all(
        a < b + b_size and b < a + a_size
        for a, a_size, b, b_size in zip(
            one.starts, one.sizes, other.starts, other.sizes, strict=True
        )
    )

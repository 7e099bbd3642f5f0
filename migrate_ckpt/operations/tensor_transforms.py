"""What operations do to one tensor, or to many that become one, without arithmetic on what is kept of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from migrate_ckpt.errors import NotInvertible, OperationError
from migrate_ckpt.operations.moves import Action
from migrate_ckpt.operations.shapes_alone import join, scale, stack
from migrate_ckpt.operations.tensor_actions import (
    Kind,
    dense,
    kind_of,
    length_of,
    name_of,
    of_kind,
)

if TYPE_CHECKING:
    import torch

Layout: TypeAlias = Literal["blocks", "grouped"]
"""How query, key and value rows lie in one tensor.

`blocks`: all of the query's, then the key's, then the value's. `grouped`: for each head of the key those of
the query's heads that share it, then its key, then its value (Megatron-LM and GPT-NeoX).
"""


@dataclass(frozen=True)
class PermuteDims:
    """Order the dimensions anew; None swaps the two of a matrix."""

    dims: tuple[int, ...] | None = None
    reads = True

    def __call__(self, values: Sequence[Any]) -> Sequence[Any]:
        tensor = dense(values[0])
        return [_made(tensor, tensor.detach().permute(self._dims(tensor)))]

    def inverse(self, values: Sequence[Any]) -> Action:
        dims = self._dims(dense(values[0]))
        return PermuteDims(tuple(dims.index(dim) for dim in range(len(dims))))

    def for_moments(self) -> Action:
        return self

    def _dims(self, tensor: torch.Tensor) -> tuple[int, ...]:
        count = tensor.dim()
        dims = (1, 0) if self.dims is None else self.dims
        found = tuple(dim + count if dim < 0 else dim for dim in dims)
        if sorted(found) != list(range(count)):
            raise OperationError(
                f"a tensor of shape {tuple(tensor.shape)} has no dimensions {dims} to order anew."
            )
        return found


@dataclass(frozen=True)
class Reshape:
    """Give the elements, in their order, another shape; one length may be -1."""

    shape: tuple[int, ...]
    reads = True

    def __call__(self, values: Sequence[Any]) -> Sequence[Any]:
        tensor = dense(values[0])
        try:
            made = tensor.detach().reshape(self.shape)
        except RuntimeError as error:
            raise OperationError(
                f"the {tensor.numel()} elements of shape {tuple(tensor.shape)} do not fit into {self.shape}."
            ) from error
        return [_made(tensor, made)]

    def inverse(self, values: Sequence[Any]) -> Action:
        return Reshape(tuple(dense(values[0]).shape))

    def for_moments(self) -> Action:
        return self


@dataclass(frozen=True)
class TakeRows:
    """Put what lies along a dimension into another order."""

    order: tuple[int, ...]
    dim: int
    reads = True

    def __call__(self, values: Sequence[Any]) -> Sequence[Any]:
        import torch

        tensor = dense(values[0])
        length = length_of(tensor, self.dim)
        if sorted(self.order) != list(range(length)):
            raise OperationError(
                f"the order does not name each of the {length} rows along dimension {self.dim} once; "
                f"it has {len(self.order)}."
            )
        index = torch.tensor(self.order, device=tensor.device)
        return [of_kind(kind_of(tensor), tensor.detach().index_select(self.dim, index))]

    def inverse(self, values: Sequence[Any]) -> Action:
        back = [0] * len(self.order)
        for new, old in enumerate(self.order):
            back[old] = new
        return TakeRows(tuple(back), self.dim)

    def for_moments(self) -> Action:
        return self


@dataclass(frozen=True)
class TrimRows:
    """Keep so many rows along a dimension, from one on, and give up the rest."""

    start: int
    count: int
    dim: int
    reads = True

    def __call__(self, values: Sequence[Any]) -> Sequence[Any]:
        tensor = dense(values[0])
        length = length_of(tensor, self.dim)
        if self.start + self.count > length:
            raise OperationError(
                f"{self.count} rows from {self.start} on cannot be kept of {length} along dimension {self.dim}."
            )
        kept = tensor.detach().narrow(self.dim, self.start, self.count)
        return [_made(tensor, kept)]

    def inverse(self, values: Sequence[Any]) -> Action:
        tensor = dense(values[0])
        gone = length_of(tensor, self.dim) - self.count
        if not gone:
            return self
        raise NotInvertible(f"{gone} rows of it are given up, so they cannot be put back.")

    def for_moments(self) -> Action:
        return self


@dataclass(frozen=True)
class PadRows:
    """Add rows of a number along a dimension, before or after those that are there."""

    count: int
    dim: int
    value: float
    is_before: bool
    reads = True

    def __call__(self, values: Sequence[Any]) -> Sequence[Any]:
        import torch

        tensor = dense(values[0])
        length_of(tensor, self.dim)
        shape = list(tensor.shape)
        shape[self.dim] = self.count
        rows = torch.full(shape, self.value, dtype=tensor.dtype, device=tensor.device)
        parts = [rows, tensor.detach()] if self.is_before else [tensor.detach(), rows]
        return [of_kind(kind_of(tensor), join(parts, self.dim))]

    def inverse(self, values: Sequence[Any]) -> Action:
        length = length_of(dense(values[0]), self.dim)
        return TrimRows(self.count if self.is_before else 0, length, self.dim)

    def for_moments(self) -> Action:
        # Nothing has moved the new rows yet.
        return replace(self, value=0.0)


@dataclass(frozen=True)
class CutRows:
    """Give up so many rows at the end, or the beginning, of a dimension."""

    count: int
    dim: int
    is_before: bool
    reads = True

    def __call__(self, values: Sequence[Any]) -> Sequence[Any]:
        tensor = dense(values[0])
        left = length_of(tensor, self.dim) - self.count
        if left < 0:
            raise OperationError(
                f"{self.count} rows cannot be cut off a tensor of shape {tuple(tensor.shape)} along dimension "
                f"{self.dim}."
            )
        return TrimRows(self.count if self.is_before else 0, left, self.dim)(values)

    def inverse(self, values: Sequence[Any]) -> Action:
        raise NotInvertible(f"{self.count} rows of it are given up.")

    def for_moments(self) -> Action:
        return self


@dataclass(frozen=True)
class StackTensors:
    """Put tensors of one shape and dtype beside each other, along a new dimension."""

    dim: int
    reads = True

    def __call__(self, values: Sequence[Any]) -> Sequence[Any]:

        tensors = [dense(value) for value in values]
        if len({(tuple(tensor.shape), tensor.dtype) for tensor in tensors}) > 1:
            shown = ", ".join(dict.fromkeys(f"{name_of(t.dtype)}{list(t.shape)}" for t in tensors))
            raise OperationError(f"tensors of {shown} cannot be stacked: they must be of one kind.")
        if not -tensors[0].dim() - 1 <= self.dim <= tensors[0].dim():
            shape = tuple(tensors[0].shape)
            raise OperationError(
                f"tensors of shape {shape} have no place for a dimension {self.dim}."
            )
        made = stack([tensor.detach() for tensor in tensors], self.dim)
        return [of_kind(kind_of(tensors[0]), made)]

    def inverse(self, values: Sequence[Any]) -> Action:
        tensors = [dense(value) for value in values]
        return UnstackTensor(self.dim, len(tensors), tuple(map(kind_of, tensors)))

    def for_moments(self) -> Action:
        return self


@dataclass(frozen=True)
class UnstackTensor:
    """Take a tensor apart along a dimension, which goes; each part is of the kind of the whole, unless it is said."""

    dim: int
    count: int
    kinds: tuple[Kind, ...] | None = None
    reads = True

    def __call__(self, values: Sequence[Any]) -> Sequence[Any]:
        import torch

        tensor = dense(values[0])
        length = length_of(tensor, self.dim)
        if length != self.count:
            raise OperationError(
                f"a tensor of shape {tuple(tensor.shape)} has {length} parts along dimension {self.dim}, "
                f"and not {self.count}."
            )
        kinds = self.kinds or (kind_of(tensor),) * self.count
        parts = torch.unbind(tensor.detach(), self.dim)
        return [
            of_kind(kind, part.clone(memory_format=torch.contiguous_format))
            for kind, part in zip(kinds, parts, strict=True)
        ]

    def inverse(self, values: Sequence[Any]) -> Action:
        return StackTensors(self.dim)

    def for_moments(self) -> Action:
        return replace(self, kinds=None)


@dataclass(frozen=True)
class Heads:
    """The heads of an attention: how many of the query's, how many of key and value, and how the rows lie."""

    query: int
    key_value: int
    layout: Layout

    def rows(self, length: int) -> int:
        """Return how many rows of so many each head has.

        Raises:
            OperationError: They do not share out.
        """
        count = self.query + 2 * self.key_value
        if length % count:
            raise OperationError(
                f"{length} rows do not share out among {self.query} heads of the query and twice "
                f"{self.key_value} of key and value."
            )
        return length // count


@dataclass(frozen=True)
class SplitHeads:
    """Cut a tensor whose rows are those of query, key and value into three."""

    heads: Heads
    kinds: tuple[Kind, ...] | None = None
    reads = True

    def __call__(self, values: Sequence[Any]) -> Sequence[Any]:
        import torch

        tensor = dense(values[0])
        heads, rest = self.heads, tensor.shape[1:]
        rows = heads.rows(length_of(tensor, 0))
        if heads.layout == "blocks":
            sizes = [heads.query * rows, heads.key_value * rows, heads.key_value * rows]
            parts: Sequence[torch.Tensor] = torch.split(tensor.detach(), sizes)
        else:
            shared = heads.query // heads.key_value
            grouped = tensor.detach().reshape(heads.key_value, shared + 2, rows, *rest)
            parts = [
                grouped[:, :shared].reshape(-1, *rest),
                grouped[:, shared].reshape(-1, *rest),
                grouped[:, shared + 1].reshape(-1, *rest),
            ]
        kinds = self.kinds or (kind_of(tensor),) * 3
        return [
            of_kind(kind, part.clone(memory_format=torch.contiguous_format))
            for kind, part in zip(kinds, parts, strict=True)
        ]

    def inverse(self, values: Sequence[Any]) -> Action:
        return MergeHeads(self.heads)

    def for_moments(self) -> Action:
        return replace(self, kinds=None)


@dataclass(frozen=True)
class MergeHeads:
    """Join query, key and value, each with the rows of its heads, into one tensor."""

    heads: Heads
    reads = True

    def __call__(self, values: Sequence[Any]) -> Sequence[Any]:

        tensors = [dense(value) for value in values]
        rest = tensors[0].shape[1:]
        if len({(tuple(tensor.shape[1:]), tensor.dtype) for tensor in tensors}) > 1:
            shown = ", ".join(f"{name_of(t.dtype)}{list(t.shape)}" for t in tensors)
            raise OperationError(f"tensors of {shown} cannot be joined: only the rows may differ.")
        heads = self.heads
        rows = heads.rows(sum(length_of(tensor, 0) for tensor in tensors))
        wanted = [heads.query * rows, heads.key_value * rows, heads.key_value * rows]
        if [tensor.shape[0] for tensor in tensors] != wanted:
            found = [tensor.shape[0] for tensor in tensors]
            raise OperationError(
                f"query, key and value have {found} rows, and the heads ask for {wanted}."
            )
        query, key, value = (tensor.detach() for tensor in tensors)
        if heads.layout == "grouped":
            shared = heads.query // heads.key_value
            parts = [
                query.reshape(heads.key_value, shared, rows, *rest),
                key.reshape(heads.key_value, 1, rows, *rest),
                value.reshape(heads.key_value, 1, rows, *rest),
            ]
            made = join(parts, 1).reshape(-1, *rest)
        else:
            made = join([query, key, value], 0)
        return [of_kind(kind_of(tensors[0]), made)]

    def inverse(self, values: Sequence[Any]) -> Action:
        return SplitHeads(self.heads, tuple(kind_of(dense(value)) for value in values))

    def for_moments(self) -> Action:
        return self


@dataclass(frozen=True)
class ScaleTensor:
    """Multiply by a factor, then add a number, in the tensor's own dtype."""

    factor: float
    shift: float
    reads = True

    def __call__(self, values: Sequence[Any]) -> Sequence[Any]:
        tensor = dense(values[0])
        if not (tensor.is_floating_point() or tensor.is_complex()):
            raise OperationError(f"a tensor of {name_of(tensor.dtype)} is not scaled.")
        return [_made(tensor, scale(tensor.detach(), self.factor, self.shift))]

    def inverse(self, values: Sequence[Any]) -> Action:
        raise NotInvertible("scaled values are rounded, so those of before cannot be had exactly.")

    def for_moments(self) -> Action | None:
        # What an optimizer keeps is of the gradient, in one power or another, which nobody says.
        return None


def _made(tensor: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    """Return what was made of a tensor with memory of its own, of the tensor's kind."""
    import torch

    return of_kind(kind_of(tensor), made.clone(memory_format=torch.contiguous_format))

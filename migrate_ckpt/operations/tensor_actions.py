"""What operations do to the tensors themselves. Each result has memory of its own, and no more than it shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from migrate_ckpt.absent import is_absent, note_read
from migrate_ckpt.errors import NotInvertible, OperationError
from migrate_ckpt.operations.moves import KEEP, Action
from migrate_ckpt.operations.sections import is_tensor
from migrate_ckpt.operations.shapes_alone import join

if TYPE_CHECKING:
    import torch

Kind: TypeAlias = tuple[bool, bool]
"""Whether a tensor is a parameter, and whether it requires a gradient."""


@dataclass(frozen=True)
class SplitTensor:
    """Cut a tensor along a dimension, into parts of these sizes or so many equal ones.

    A part is of the kind of the whole, if it is not said of which.
    """

    dim: int
    count: int
    sizes: tuple[int, ...] | None = None
    kinds: tuple[Kind, ...] | None = None
    reads = True

    def __call__(self, values: Sequence[Any]) -> Sequence[Any]:
        import torch

        tensor = dense(values[0])
        length = length_of(tensor, self.dim)
        sizes = self.sizes or (length // self.count,) * self.count
        if sum(sizes) != length:
            wanted = f"{self.count} equal parts" if self.sizes is None else f"parts of {sizes}"
            raise OperationError(
                f"a tensor of shape {tuple(tensor.shape)} cannot be split into {wanted} along "
                f"dimension {self.dim}, where it has {length}."
            )
        parts = torch.split(tensor.detach(), list(sizes), self.dim)
        kinds = self.kinds or (kind_of(tensor),) * self.count
        return [
            of_kind(kind, part.clone(memory_format=torch.contiguous_format))
            for kind, part in zip(kinds, parts, strict=True)
        ]

    def inverse(self, values: Sequence[Any]) -> Action:
        return ConcatTensors(self.dim)

    def for_moments(self) -> Action:
        return replace(self, kinds=None)


@dataclass(frozen=True)
class ConcatTensors:
    """Join tensors of one dtype along a dimension, and of these lengths, if it is said of which."""

    dim: int
    sizes: tuple[int, ...] | None = None
    reads = True

    def __call__(self, values: Sequence[Any]) -> Sequence[Any]:
        tensors = [dense(value) for value in values]
        lengths = [length_of(tensor, self.dim) for tensor in tensors]
        rest = {(_without(tensor, self.dim), tensor.dtype) for tensor in tensors}
        if len(rest) > 1 or not lengths:
            shown = ", ".join(f"{name_of(t.dtype)}{list(t.shape)}" for t in tensors)
            raise OperationError(
                f"tensors of {shown} cannot be joined along dimension {self.dim}: all else of the "
                "shape, and the dtype, must be the same."
            )
        if self.sizes is not None and tuple(lengths) != self.sizes:
            raise OperationError(
                f"they have {lengths} along dimension {self.dim}, and the sizes say {list(self.sizes)}."
            )
        return [of_kind(kind_of(tensors[0]), join([t.detach() for t in tensors], self.dim))]

    def inverse(self, values: Sequence[Any]) -> Action:
        tensors = [dense(value) for value in values]
        sizes = tuple(length_of(tensor, self.dim) for tensor in tensors)
        return SplitTensor(self.dim, len(values), sizes, tuple(map(kind_of, tensors)))

    def for_moments(self) -> Action:
        return self


@dataclass(frozen=True)
class CastTensor:
    """Give a tensor another dtype, named as torch names it."""

    dtype: str
    reads = True

    def __call__(self, values: Sequence[Any]) -> Sequence[Any]:
        tensor = dense(values[0])
        # Also where it is of this dtype already the result must not be a view of more.
        return [of_kind(kind_of(tensor), tensor.detach().to(dtype_named(self.dtype), copy=True))]

    def inverse(self, values: Sequence[Any]) -> Action:
        tensor = dense(values[0])
        if not _holds_all_of(dtype_named(self.dtype), tensor.dtype):
            raise NotInvertible(
                f"{self.dtype} does not hold all values of {name_of(tensor.dtype)}, so the cast "
                "cannot be undone."
            )
        return CastTensor(name_of(tensor.dtype))

    def for_moments(self) -> Action:
        # Moments have a precision of their own, and torch gives them the parameter's when it loads them.
        return KEEP


@dataclass(frozen=True)
class Discard:
    """Give the values up."""

    reads = False

    def __call__(self, values: Sequence[Any]) -> Sequence[Any]:
        return []

    def inverse(self, values: Sequence[Any]) -> Action:
        count = sum(map(nbytes, values))
        raise NotInvertible(f"dropped, and {count} bytes with it, so it cannot be put back.")

    def for_moments(self) -> Action:
        return self


@dataclass(frozen=True)
class MakeTensor:
    """Make a tensor of a number everywhere, or of nested tuples of numbers where no shape is given."""

    value: Any
    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    reads = False

    def __call__(self, values: Sequence[Any]) -> Sequence[Any]:
        import torch

        dtype = None if self.dtype is None else dtype_named(self.dtype)
        if self.shape is None:
            return [torch.tensor(self.value, dtype=dtype)]
        return [torch.full(self.shape, self.value, dtype=dtype)]

    def inverse(self, values: Sequence[Any]) -> Action:
        return _Unmake()

    def for_moments(self) -> Action:
        return _BesideNothing()


@dataclass(frozen=True)
class AddBeside:
    """Keep a tensor and make another beside it: a copy, or one of a number with its shape and dtype."""

    value: Any = None
    dtype: str | None = None

    @property
    def reads(self) -> bool:
        return self.value is None

    def __call__(self, values: Sequence[Any]) -> Sequence[Any]:
        import torch

        tensor = dense(values[0], is_read=self.reads)
        dtype = tensor.dtype if self.dtype is None else dtype_named(self.dtype)
        if self.value is not None:
            device = "cpu" if is_absent(tensor) else tensor.device
            made = torch.full(tuple(tensor.shape), self.value, dtype=dtype, device=device)
        else:
            made = tensor.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
        return [values[0], of_kind(kind_of(tensor), made)]

    def inverse(self, values: Sequence[Any]) -> Action:
        return _Unmake()

    def for_moments(self) -> Action:
        return _BesideNothing()


@dataclass(frozen=True)
class _BesideNothing:
    """Keep the values, and have nothing for what was made."""

    reads = False

    def __call__(self, values: Sequence[Any]) -> Sequence[Any]:
        return [*values, None]

    def inverse(self, values: Sequence[Any]) -> Action:
        return _Unmake()

    def for_moments(self) -> Action:
        return self


@dataclass(frozen=True)
class _Unmake:
    """Give up what was made, the last of the values, and keep what it was made beside."""

    reads = False

    def __call__(self, values: Sequence[Any]) -> Sequence[Any]:
        return values[:-1]

    def inverse(self, values: Sequence[Any]) -> Action:
        raise NotInvertible("what was made for it is given up.")

    def for_moments(self) -> Action:
        return self


def cast_action(tensor: Any, dtype: str) -> Action:
    """Return the action that gives a tensor a dtype; none if it has it."""
    return KEEP if name_of(tensor.dtype) == dtype else CastTensor(dtype)


def dtype_named(name: str) -> torch.dtype:
    """Return torch's dtype of this name.

    Raises:
        OperationError: There is none.
    """
    import torch

    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise OperationError(f"torch has no dtype {name!r}.")
    return dtype


def nbytes(value: Any) -> int:
    """Return the bytes of a tensor's elements; 0 for what is none."""
    return value.numel() * value.element_size() if is_tensor(value) else 0


def have_equal_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Tell whether two dense tensors have one dtype, one shape and the same bits."""
    import torch

    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if one.is_meta or other.is_meta:
        # Without bytes nobody can tell; a plan says what the shapes allow.
        return True
    bits = [tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return torch.equal(*bits)


def dense(value: Any, *, is_read: bool = True) -> torch.Tensor:
    """Return a value as the dense tensor that it is, whose bytes are read unless it is said that they are not.

    Raises:
        OperationError: It is none.
    """
    import torch

    if not is_tensor(value) or value.layout is not torch.strided or value.is_quantized:
        raise OperationError(f"its value is a {type(value).__name__} and no dense tensor.")
    tensor: torch.Tensor = value
    if is_read and tensor.is_meta:
        note_read(tensor)
    return tensor


def length_of(tensor: torch.Tensor, dim: int) -> int:
    if not -tensor.dim() <= dim < tensor.dim():
        raise OperationError(f"a tensor of shape {tuple(tensor.shape)} has no dimension {dim}.")
    return tensor.shape[dim]


def _without(tensor: torch.Tensor, dim: int) -> tuple[int, ...]:
    shape = list(tensor.shape)
    del shape[dim]
    return tuple(shape)


def kind_of(tensor: torch.Tensor) -> Kind:
    import torch

    return isinstance(tensor, torch.nn.Parameter), tensor.requires_grad


def of_kind(kind: Kind, made: torch.Tensor) -> torch.Tensor:
    import torch

    is_parameter, requires_grad = kind
    requires_grad = requires_grad and (made.is_floating_point() or made.is_complex())
    if is_parameter:
        return torch.nn.Parameter(made, requires_grad=requires_grad)
    return made.requires_grad_(requires_grad)


def _holds_all_of(wide: torch.dtype, narrow: torch.dtype) -> bool:
    import torch

    if not (wide.is_floating_point and narrow.is_floating_point):
        return wide == narrow
    one, other = torch.finfo(wide), torch.finfo(narrow)
    return (
        one.eps <= other.eps
        and one.max >= other.max
        and one.smallest_normal * one.eps <= other.smallest_normal * other.eps
    )


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

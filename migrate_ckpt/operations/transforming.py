"""Operations that give tensors another form under the same name: order of dimensions and rows, shape, length, scale."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from migrate_ckpt.operations.moves import Action, Move
from migrate_ckpt.operations.operation import Operation
from migrate_ckpt.operations.paths import PathLike
from migrate_ckpt.operations.patterns import KeyPattern, match
from migrate_ckpt.operations.sections import own_keys, to_sections
from migrate_ckpt.operations.state_dict_operation import (
    Missing,
    StateDictOperation,
    pattern_text,
    to_patterns,
)
from migrate_ckpt.operations.tensor_transforms import (
    CutRows,
    PadRows,
    PermuteDims,
    Reshape,
    ScaleTensor,
    TakeRows,
    TrimRows,
)

Keys = KeyPattern | Sequence[KeyPattern]


@dataclass(frozen=True)
class OnEach(StateDictOperation):
    """Does the same to each tensor that is meant, which keeps its name and its place."""

    keys: tuple[KeyPattern, ...]

    @abstractmethod
    def action(self) -> Action:
        """Return what is done to each."""

    def moves(self, state_dict: Mapping[str, Any]) -> tuple[Move, ...]:
        keys = own_keys(state_dict)
        action = self.action()
        moves = tuple(
            Move((key,), (key,), action)
            for key in keys
            if any(match(pattern, key) is not None for pattern in self.keys)
        )
        return moves or self._found_none(map(pattern_text, self.keys), keys)


@dataclass(frozen=True)
class Permute(OnEach):
    """Patterns of keys, and the order of dimensions to give them."""

    dims: tuple[int, ...]

    def action(self) -> Action:
        return PermuteDims(self.dims)

    def declared_inverse(self) -> tuple[Operation, ...]:
        dims = [dim % len(self.dims) for dim in self.dims]
        return (replace(self, dims=tuple(map(dims.index, range(len(dims))))),)


def permute(
    keys: Keys,
    dims: Sequence[int],
    *,
    section: PathLike | list[PathLike] | None = None,
    missing: Missing = "error",
) -> Permute:
    """Order dimensions anew, as `torch.permute` does: `permute("conv.weight", [3, 2, 0, 1])`.

    Args:
        keys: Which keys: keys, templates or compiled regexes.
        dims: For each dimension of the result, which one of the tensor it is.
        section: The path of the state dict, or a list of paths; None is the model's.
        missing: What to do where no key is found: "error", or "skip".
    """
    return Permute(to_patterns(keys), tuple(dims), section=to_sections(section), missing=missing)


@dataclass(frozen=True)
class Transpose(OnEach):
    """Patterns of the keys of matrices."""

    def action(self) -> Action:
        return PermuteDims()

    def declared_inverse(self) -> tuple[Operation, ...]:
        return (self,)


def transpose(
    keys: Keys,
    *,
    section: PathLike | list[PathLike] | None = None,
    missing: Missing = "error",
) -> Transpose:
    """Swap the two dimensions of matrices, such as the weights of GPT-2's Conv1D.

    Args:
        keys: Which keys: keys, templates or compiled regexes.
        section: The path of the state dict, or a list of paths; None is the model's.
        missing: What to do where no key is found: "error", or "skip".
    """
    return Transpose(to_patterns(keys), section=to_sections(section), missing=missing)


@dataclass(frozen=True)
class ReshapeTo(OnEach):
    """Patterns of keys, and the shape to give them."""

    shape: tuple[int, ...]

    def action(self) -> Action:
        return Reshape(self.shape)

    def declared_inverse(self) -> tuple[Operation, ...]:
        raise self._not_invertible("it does not say the shape of before")

    @property
    def verb(self) -> str:
        return "reshape"


def reshape(
    keys: Keys,
    shape: Sequence[int],
    *,
    section: PathLike | list[PathLike] | None = None,
    missing: Missing = "error",
) -> ReshapeTo:
    """Give tensors another shape of as many elements: `reshape("embed.weight", [768, 3, 16, 16])`.

    Args:
        keys: Which keys: keys, templates or compiled regexes.
        shape: The lengths; one of them may be -1, which is what is left for it.
        section: The path of the state dict, or a list of paths; None is the model's.
        missing: What to do where no key is found: "error", or "skip".
    """
    return ReshapeTo(to_patterns(keys), tuple(shape), section=to_sections(section), missing=missing)


@dataclass(frozen=True)
class PermuteRows(OnEach):
    """Patterns of keys, and for each row of the result which one it was."""

    order: tuple[int, ...]
    dim: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        if sorted(self.order) != list(range(len(self.order))):
            raise ValueError("permute_rows needs an order that names each row from 0 on once.")

    def action(self) -> Action:
        return TakeRows(self.order, self.dim)

    def declared_inverse(self) -> tuple[Operation, ...]:
        back = tuple(map(self.order.index, range(len(self.order))))
        return (replace(self, order=back),)


def permute_rows(
    keys: Keys,
    order: Sequence[int],
    *,
    dim: int = 0,
    section: PathLike | list[PathLike] | None = None,
    missing: Missing = "error",
) -> PermuteRows:
    """Put rows into another order: `permute_rows("head.{name}", [1, 2, 3, 0])` has the first class go last.

    Args:
        keys: Which keys: keys, templates or compiled regexes.
        order: For each row of the result, which one of the tensor it is.
        dim: The dimension that counts the rows.
        section: The path of the state dict, or a list of paths; None is the model's.
        missing: What to do where no key is found: "error", or "skip".
    """
    return PermuteRows(
        to_patterns(keys), tuple(order), dim=dim, section=to_sections(section), missing=missing
    )


@dataclass(frozen=True)
class Trim(OnEach):
    """Patterns of keys, and which rows of them stay."""

    count: int
    start: int = field(default=0, kw_only=True)
    dim: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        if self.count < 0 or self.start < 0:
            raise ValueError(
                "trim_rows keeps a number of rows, from one that is counted from 0 on."
            )

    def action(self) -> Action:
        return TrimRows(self.start, self.count, self.dim)

    def declared_inverse(self) -> tuple[Operation, ...]:
        raise self._not_invertible("the rows that it trims are given up")

    @property
    def verb(self) -> str:
        return "trim_rows"


def trim_rows(
    keys: Keys,
    count: int,
    *,
    start: int = 0,
    dim: int = 0,
    section: PathLike | list[PathLike] | None = None,
    missing: Missing = "error",
) -> Trim:
    """Keep so many rows and give up the rest: `trim_rows("embed.weight", 50257)`. It cannot be undone.

    Args:
        keys: Which keys: keys, templates or compiled regexes.
        count: How many rows stay.
        start: The first one that does.
        dim: The dimension that counts the rows.
        section: The path of the state dict, or a list of paths; None is the model's.
        missing: What to do where no key is found: "error", or "skip".
    """
    return Trim(
        to_patterns(keys),
        count,
        start=start,
        dim=dim,
        section=to_sections(section),
        missing=missing,
    )


@dataclass(frozen=True)
class Pad(OnEach):
    """Patterns of keys, and how many rows to add."""

    count: int
    value: float = field(default=0.0, kw_only=True)
    at: Literal["end", "start"] = field(default="end", kw_only=True)
    dim: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        if self.count < 0 or self.at not in ("end", "start"):
            raise ValueError('pad_rows adds a number of rows, at the "end" or the "start".')

    def action(self) -> Action:
        return PadRows(self.count, self.dim, self.value, self.at == "start")

    def declared_inverse(self) -> tuple[Operation, ...]:
        return (
            _Unpad(
                self.keys,
                self.count,
                at=self.at,
                dim=self.dim,
                section=self.section,
                missing=self.missing,
            ),
        )

    @property
    def verb(self) -> str:
        return "pad_rows"


@dataclass(frozen=True)
class _Unpad(OnEach):
    """Patterns of keys, and how many rows were added to them."""

    count: int
    at: Literal["end", "start"] = field(kw_only=True)
    dim: int = field(kw_only=True)

    def action(self) -> Action:
        return CutRows(self.count, self.dim, self.at == "start")

    def __str__(self) -> str:
        return f"undo(pad_rows of {self.count})"


def pad_rows(
    keys: Keys,
    count: int,
    *,
    value: float = 0.0,
    at: Literal["end", "start"] = "end",
    dim: int = 0,
    section: PathLike | list[PathLike] | None = None,
    missing: Missing = "error",
) -> Pad:
    """Add rows of one number: `pad_rows("embed.weight", 47)`. Moments of an optimizer get rows of zeros.

    Args:
        keys: Which keys: keys, templates or compiled regexes.
        count: How many rows are added.
        value: What is in them.
        at: Where they go: behind the others, or before them.
        dim: The dimension that counts the rows.
        section: The path of the state dict, or a list of paths; None is the model's.
        missing: What to do where no key is found: "error", or "skip".
    """
    return Pad(
        to_patterns(keys),
        count,
        value=value,
        at=at,
        dim=dim,
        section=to_sections(section),
        missing=missing,
    )


@dataclass(frozen=True)
class Scale(OnEach):
    """Patterns of keys, what to multiply by, and what to add then."""

    factor: float = field(default=1.0, kw_only=True)
    shift: float = field(default=0.0, kw_only=True)

    def action(self) -> Action:
        return ScaleTensor(self.factor, self.shift)

    def declared_inverse(self) -> tuple[Operation, ...]:
        raise self._not_invertible("scaled values are rounded")


def scale(
    keys: Keys,
    *,
    factor: float = 1.0,
    shift: float = 0.0,
    section: PathLike | list[PathLike] | None = None,
    missing: Missing = "error",
) -> Scale:
    """Multiply, then add: `scale("{layer}.norm.weight", shift=1)` for a norm that counts from 1.

    It is done in the tensor's own dtype, and cannot be undone exactly. An optimizer does not follow it: its moments
    are of the gradient, and what becomes of them depends on which power of it they are.

    Args:
        keys: Which keys: keys, templates or compiled regexes; integers are refused.
        factor: What to multiply by.
        shift: What to add to the product.
        section: The path of the state dict, or a list of paths; None is the model's.
        missing: What to do where no key is found: "error", or "skip".
    """
    return Scale(
        to_patterns(keys),
        factor=factor,
        shift=shift,
        section=to_sections(section),
        missing=missing,
    )

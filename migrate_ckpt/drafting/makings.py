"""What is found out of a new tensor: which old ones it is made of, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    import torch

Certainty: TypeAlias = Literal["proved", "likely"]
"""Proved by content that is no other tensor's; or likely, by names, shapes and dtypes."""


@dataclass(frozen=True, slots=True)
class View:
    """How an old tensor is looked at: its dimensions in another order, then in another dtype, then in another shape."""

    dims: tuple[int, ...] | None = None
    dtype: str | None = None
    shape: tuple[int, ...] | None = None

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        import torch

        if self.dims is not None:
            tensor = tensor.permute(self.dims)
        if self.dtype is not None:
            tensor = tensor.to(getattr(torch, self.dtype))
        return tensor if self.shape is None else tensor.reshape(self.shape)


AS_IT_IS = View()


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of an old tensor, as a view: from `start` on and before `stop`, or single ones; all where none are said."""

    source: str
    view: View = AS_IT_IS
    start: int | None = None
    stop: int | None = None
    rows: tuple[int, ...] = ()

    @property
    def is_whole(self) -> bool:
        return self.start is None and not self.rows


@dataclass(frozen=True, slots=True)
class Making:
    """A new tensor, and the parts of old ones that stand in it one after the other along a dimension.

    Attributes:
        target: The new key.
        parts: What it is made of.
        dim: The dimension that the parts are cut and joined along.
        kind: The parts are joined; or, whole, stacked; or the one row is taken, without its dimension.
        order: For each row of the new tensor which one of the joined it is; empty where that is their order.
        padding: How many rows of a number come after the others.
        fill: That number.
        certainty: How sure it is.
    """

    target: str
    parts: tuple[Part, ...]
    dim: int = 0
    kind: Literal["joined", "stacked", "taken"] = "joined"
    order: tuple[int, ...] = ()
    padding: int = 0
    fill: float = 0.0
    certainty: Certainty = "proved"

    @classmethod
    def of_one(
        cls, target: str, source: str, view: View = AS_IT_IS, *, certainty: Certainty = "proved"
    ) -> Making:
        return cls(target, (Part(source, view),), certainty=certainty)

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(part.source for part in self.parts))

    @property
    def is_whole(self) -> bool:
        """Whether it is all of one old tensor, which no other is made of."""
        return self.kind == "joined" and len(self.parts) == 1 and self.parts[0].is_whole

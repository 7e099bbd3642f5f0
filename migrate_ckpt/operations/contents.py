"""Operations that take keys away, or put keys in."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from migrate_ckpt.migration import CkptType
from migrate_ckpt.operations.moves import Move
from migrate_ckpt.operations.operation import Operation, shown
from migrate_ckpt.operations.paths import PathLike
from migrate_ckpt.operations.patterns import (
    KeyPattern,
    check_same_placeholders,
    fill,
    match,
    placeholders,
)
from migrate_ckpt.operations.sections import own_keys, to_sections
from migrate_ckpt.operations.state_dict_operation import (
    Missing,
    StateDictOperation,
    pattern_text,
    to_patterns,
)
from migrate_ckpt.operations.tensor_actions import AddBeside, Discard, MakeTensor, nbytes

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drop(StateDictOperation):
    """The keys to take away."""

    keys: tuple[KeyPattern, ...]

    def arguments(self) -> list[str]:
        return list(map(shown, self.keys))

    def __call__(self, ckpt: CkptType) -> CkptType:
        count = self.dropped_bytes(ckpt)
        ckpt = super().__call__(ckpt)
        logger.info("%s gave up %d bytes", self, count)
        return ckpt

    def moves(self, state_dict: Mapping[str, Any]) -> tuple[Move, ...]:
        keys = own_keys(state_dict)
        hits = {p: [key for key in keys if match(p, key) is not None] for p in self.keys}
        without = [pattern_text(pattern) for pattern, found in hits.items() if not found]
        if without:
            self._found_none(without, keys)
        return tuple(
            Move((key,), (), Discard())
            for key in dict.fromkeys(key for found in hits.values() for key in found)
        )

    def declared_inverse(self) -> tuple[Operation, ...]:
        raise self._not_invertible("what it drops is given up")

    def dropped_bytes(self, ckpt: CkptType) -> int:
        """Return the bytes of the tensors that it takes away from a checkpoint."""
        return sum(
            nbytes(state_dict[key])
            for _, state_dict, moves in self._planned(ckpt)
            for move in moves
            for key in move.sources
        )


def drop(
    *keys: KeyPattern,
    section: PathLike | list[PathLike] | None = None,
    missing: Missing = "error",
) -> Drop:
    """Take keys away: `drop("layers.{i}.rotary.inv_freq")`. Cannot be undone.

    Args:
        *keys: Keys, templates or compiled regexes.
        section: The path of the state dict, or a list of paths; None is the model's.
        missing: What to do where one of them has no key: "error", or "skip" it.
    """
    if not keys:
        raise ValueError("drop needs a key.")
    return Drop(to_patterns(keys), section=to_sections(section), missing=missing)


@dataclass(frozen=True)
class Add(StateDictOperation):
    """A key to put in, and what its tensor is made of."""

    key: str
    value: Any = None
    shape: tuple[int, ...] | None = field(default=None, kw_only=True)
    dtype: str | None = field(default=None, kw_only=True)
    like: str | None = field(default=None, kw_only=True)
    copy_of: str | None = field(default=None, kw_only=True)
    existing: Literal["error", "skip"] = field(default="error", kw_only=True)

    def __post_init__(self) -> None:
        if (self.value is None) == (self.copy_of is None):
            raise ValueError("add needs a value, or copy_of and no value.")
        if sum(x is not None for x in (self.shape, self.like, self.copy_of)) > 1:
            raise ValueError("add takes one of shape, like and copy_of.")
        model = self.like or self.copy_of
        if model is not None:
            check_same_placeholders(self.key, model)
        elif placeholders(self.key):
            raise ValueError(f"{self.key!r} has a placeholder: say what it is like, or a copy of.")

    def moves(self, state_dict: Mapping[str, Any]) -> tuple[Move, ...]:
        model = self.like or self.copy_of
        moves: tuple[Move, ...]
        if model is None:
            moves = (Move((), (self.key,), MakeTensor(self.value, self.shape, self.dtype)),)
        else:
            keys = own_keys(state_dict)
            action = AddBeside(self.value, self.dtype)
            moves = tuple(
                Move((key,), (key, fill(self.key, found)), action)
                for key in keys
                if (found := match(model, key)) is not None
            )
            if not moves:
                return self._found_none([model], keys)
        if self.existing == "skip":
            moves = tuple(move for move in moves if move.targets[-1] not in state_dict)
        return moves

    def declared_inverse(self) -> tuple[Operation, ...]:
        if self.existing == "skip":
            raise self._not_invertible("what it adds may have been there before")
        return (Drop((self.key,), section=self.section, missing=self.missing),)


def add(
    key: str,
    value: Any = None,
    *,
    shape: Sequence[int] | None = None,
    dtype: str | torch.dtype | None = None,
    like: str | None = None,
    copy_of: str | None = None,
    existing: Literal["error", "skip"] = "error",
    section: PathLike | list[PathLike] | None = None,
    missing: Missing = "error",
) -> Add:
    """Put a tensor in: `add("bn.num_batches_tracked", 0)`, `add("fc.bias", 0.0, shape=[10])`.

    Without `like` and `copy_of` the key comes last; with them it comes after the one it is made from.

    Args:
        key: The new key; with `like` or `copy_of` it may be a template.
        value: A number, for all elements; without `shape` and `like` also lists of numbers.
        shape: The shape to fill with the number.
        dtype: The dtype or its name; None takes that of the model or, for a number, torch's default.
        like: A key or template whose shape and dtype to take.
        copy_of: A key or template whose tensor to copy.
        existing: What to do where the new key is there already: "error", or "skip".
        section: The path of the state dict, or a list of paths; None is the model's.
        missing: What to do where `like` or `copy_of` is not found: "error", or "skip".
    """
    return Add(
        key,
        _frozen(value),
        shape=None if shape is None else tuple(shape),
        dtype=None if dtype is None else str(dtype).removeprefix("torch."),
        like=like,
        copy_of=copy_of,
        existing=existing,
        section=to_sections(section),
        missing=missing,
    )


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value

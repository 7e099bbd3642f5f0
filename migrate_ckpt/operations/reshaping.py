"""Operations that make other tensors: split, concat, cast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from migrate_ckpt.errors import IncompleteGroup
from migrate_ckpt.operations.moves import Action, Move, list_keys
from migrate_ckpt.operations.operation import Operation
from migrate_ckpt.operations.paths import PathLike
from migrate_ckpt.operations.patterns import (
    KeyPattern,
    check_same_placeholders,
    fill,
    match,
    placeholders,
)
from migrate_ckpt.operations.sections import is_tensor, own_keys, to_sections
from migrate_ckpt.operations.state_dict_operation import (
    Missing,
    StateDictOperation,
    pattern_text,
    to_patterns,
)
from migrate_ckpt.operations.tensor_actions import (
    CastTensor,
    ConcatTensors,
    SplitTensor,
    cast_action,
)

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Split(StateDictOperation):
    """A key or template, those of its parts, and how to cut."""

    source: str
    targets: tuple[str, ...]
    sizes: tuple[int, ...] | None = field(default=None, kw_only=True)
    dim: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        if not self.targets:
            raise ValueError("split needs a name for each part.")
        if self.sizes is not None and len(self.sizes) != len(self.targets):
            raise ValueError(f"split has {len(self.targets)} names and {len(self.sizes)} sizes.")
        check_same_placeholders(self.source, *self.targets)

    def moves(self, state_dict: Mapping[str, Any]) -> tuple[Move, ...]:
        keys = own_keys(state_dict)
        action = self.action()
        moves = tuple(
            Move((key,), tuple(fill(target, found) for target in self.targets), action)
            for key in keys
            if (found := match(self.source, key)) is not None
        )
        return moves or self._found_none([self.source], keys)

    def declared_inverse(self) -> tuple[Operation, ...]:
        return (
            Concat(
                self.targets,
                self.source,
                sizes=self.sizes,
                dim=self.dim,
                section=self.section,
                missing=self.missing,
            ),
        )

    def action(self) -> Action:
        """Return what makes the parts of a whole."""
        return SplitTensor(self.dim, len(self.targets), self.sizes)


def split(
    source: str,
    targets: Sequence[str],
    *,
    sizes: Sequence[int] | None = None,
    dim: int = 0,
    section: PathLike | list[PathLike] | None = None,
    missing: Missing = "error",
) -> Split:
    """Cut tensors into several: `split("layers.{i}.qkv.weight", ["layers.{i}.q.weight", ...])`.

    The parts stand where the whole stood. Each has memory of its own: a file does not keep the whole for a part.

    Args:
        source: A key or a template.
        targets: The names of the parts, with the same placeholders.
        sizes: The length of each part along `dim`; None makes equal parts.
        dim: The dimension to cut along.
        section: The path of the state dict, or a list of paths; None is the model's.
        missing: What to do where no key is found: "error", or "skip".
    """
    return Split(
        source,
        tuple(targets),
        sizes=None if sizes is None else tuple(sizes),
        dim=dim,
        section=to_sections(section),
        missing=missing,
    )


@dataclass(frozen=True)
class Concat(StateDictOperation):
    """Keys or templates whose tensors are joined in this order, and the name of the whole."""

    sources: tuple[str, ...]
    target: str
    sizes: tuple[int, ...] | None = field(default=None, kw_only=True)
    dim: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("concat needs the names of the parts.")
        if self.sizes is not None and len(self.sizes) != len(self.sources):
            raise ValueError(f"concat has {len(self.sources)} names and {len(self.sizes)} sizes.")
        check_same_placeholders(self.target, *self.sources)

    def moves(self, state_dict: Mapping[str, Any]) -> tuple[Move, ...]:
        keys = own_keys(state_dict)
        groups = self._groups(keys)
        expected = [
            [fill(source, dict(zip(self._names, values, strict=True))) for source in self.sources]
            for values in groups
        ]
        absent = [key for group in expected for key in group if key not in state_dict]
        if absent:
            raise IncompleteGroup(
                f"{list_keys(absent)} must be joined with keys that are there, and is not.",
                keys=absent,
            )
        action = self.action()
        moves = tuple(
            Move(
                tuple(group),
                (fill(self.target, dict(zip(self._names, values, strict=True))),),
                action,
            )
            for values, group in zip(groups, expected, strict=True)
        )
        return moves or self._found_none(self.sources, keys)

    def declared_inverse(self) -> tuple[Operation, ...]:
        if self.sizes is None:
            raise self._not_invertible("it does not say the `sizes` of the parts")
        return (
            Split(
                self.target,
                self.sources,
                sizes=self.sizes,
                dim=self.dim,
                section=self.section,
                missing=self.missing,
            ),
        )

    def action(self) -> Action:
        """Return what makes the whole of its parts."""
        return ConcatTensors(self.dim, self.sizes)

    @property
    def _names(self) -> tuple[str, ...]:
        return placeholders(self.target)

    def _groups(self, keys: Sequence[str]) -> list[tuple[str, ...]]:
        """Return what the placeholders stand for, once for each whole that has any part."""
        found = (match(source, key) for key in keys for source in self.sources)
        return list(dict.fromkeys(tuple(f[n] for n in self._names) for f in found if f is not None))


def concat(
    sources: Sequence[str],
    target: str,
    *,
    sizes: Sequence[int] | None = None,
    dim: int = 0,
    section: PathLike | list[PathLike] | None = None,
    missing: Missing = "error",
) -> Concat:
    """Join tensors into one: `concat(["layers.{i}.q.weight", ...], "layers.{i}.qkv.weight")`.

    The whole stands where its first part stood. If some parts of a whole are there and others are not, that is an
    error, whatever `missing` says.

    Args:
        sources: The keys or templates of the parts, in the order to join them in.
        target: The name of the whole, with the same placeholders.
        sizes: The length of each part along `dim`, which is checked, and without which nobody can revert the join; None
            takes any.
        dim: The dimension to join along.
        section: The path of the state dict, or a list of paths; None is the model's.
        missing: What to do where no part is found at all: "error", or "skip".
    """
    return Concat(
        tuple(sources),
        target,
        sizes=None if sizes is None else tuple(sizes),
        dim=dim,
        section=to_sections(section),
        missing=missing,
    )


@dataclass(frozen=True)
class Cast(StateDictOperation):
    """A dtype by its name in torch, and the keys to give it to."""

    dtype: str
    keys: tuple[KeyPattern, ...] | None = field(default=None, kw_only=True)
    integers: bool = field(default=False, kw_only=True)

    def moves(self, state_dict: Mapping[str, Any]) -> tuple[Move, ...]:
        keys = own_keys(state_dict)
        meant = [key for key in keys if self._is_meant(key, state_dict[key])]
        if not meant:
            return self._found_none(map(pattern_text, self.keys or ("*",)), keys)
        actions = {key: cast_action(state_dict[key], self.dtype) for key in meant}
        return tuple(
            Move((key,), (key,), action)
            for key, action in actions.items()
            if isinstance(action, CastTensor)
        )

    def declared_inverse(self) -> tuple[Operation, ...]:
        raise self._not_invertible("it does not say the dtypes of before")

    def _is_meant(self, key: str, value: Any) -> bool:
        if self.keys is not None and not any(match(p, key) is not None for p in self.keys):
            return False
        return is_tensor(value) and (self.integers or bool(value.is_floating_point()))


def cast(
    dtype: str | torch.dtype,
    *,
    keys: KeyPattern | Sequence[KeyPattern] | None = None,
    integers: bool = False,
    section: PathLike | list[PathLike] | None = None,
    missing: Missing = "error",
) -> Cast:
    """Give tensors another dtype: `cast("bfloat16")`.

    Args:
        dtype: The dtype, or its name in torch.
        keys: Which keys: keys, templates or compiled regexes; None means all.
        integers: Cast tensors of integers, booleans and complex numbers too; by default they stay as they are.
        section: The path of the state dict, or a list of paths; None is the model's.
        missing: What to do where no tensor is meant: "error", or "skip".
    """
    return Cast(
        str(dtype).removeprefix("torch."),
        keys=None if keys is None else to_patterns(keys),
        integers=integers,
        section=to_sections(section),
        missing=missing,
    )

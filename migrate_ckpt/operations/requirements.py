"""What a migration needs of a checkpoint, and what to do with one that does not have it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from migrate_ckpt.errors import OperationError
from migrate_ckpt.foreign import ForeignObject
from migrate_ckpt.migration import CkptType
from migrate_ckpt.operations.items import not_found, parent_items
from migrate_ckpt.operations.moves import list_keys
from migrate_ckpt.operations.paths import Path, PathLike, show_path, to_path
from migrate_ckpt.operations.patterns import KeyPattern, compiled, match
from migrate_ckpt.operations.sections import (
    Sections,
    StateDict,
    find_sections,
    is_tensor,
    own_keys,
    to_sections,
)
from migrate_ckpt.operations.state_dict_operation import pattern_text

Otherwise: TypeAlias = Literal["refuse", "not_applicable"]
"""What to do where a requirement is not met: refuse the checkpoint, or record the migration without running it."""


@dataclass(frozen=True)
class Requirement(ABC):
    """One thing that must hold just before a migration is applied."""

    otherwise: Otherwise = field(default="refuse", kw_only=True)

    def __post_init__(self) -> None:
        if self.otherwise not in ("refuse", "not_applicable"):
            raise ValueError(f"otherwise={self.otherwise!r}: it is 'refuse' or 'not_applicable'.")

    @abstractmethod
    def unmet(self, ckpt: CkptType) -> str | None:
        """Say in one sentence what is missing; None if nothing is."""


@dataclass(frozen=True)
class RequiredKey(Requirement):
    """A key that must be there, and what its tensor must look like; every one that a pattern matches."""

    key: KeyPattern
    shape: tuple[int | None, ...] | None = field(default=None, kw_only=True)
    dtype: str | None = field(default=None, kw_only=True)
    section: Sections = field(default=None, kw_only=True)

    def unmet(self, ckpt: CkptType) -> str | None:
        try:
            sections = find_sections(ckpt, self.section)
        except OperationError as error:
            return str(error)
        sentences = (self._unmet_in(path, state_dict) for path, state_dict in sections)
        return next((sentence for sentence in sentences if sentence is not None), None)

    def _unmet_in(self, path: Path, state_dict: StateDict) -> str | None:
        found = [key for key in own_keys(state_dict) if match(self.key, key) is not None]
        if not found:
            return f"{show_path(path)} has no key {pattern_text(self.key)!r}."
        wrong = [key for key in found if not self._fits(state_dict[key])]
        if not wrong:
            return None
        first = state_dict[wrong[0]]
        return f"In {show_path(path)}, {list_keys(wrong)} must be {self._wanted()}, and is {_shown(first)}."

    def _fits(self, value: Any) -> bool:
        if self.shape is None and self.dtype is None:
            return True
        if not is_tensor(value):
            return False
        shape = tuple(value.shape) if self.shape is None else self.shape
        return (
            len(shape) == value.dim()
            and all(want in (None, has) for want, has in zip(shape, value.shape, strict=True))
            and self.dtype in (None, str(value.dtype).removeprefix("torch."))
        )

    def _wanted(self) -> str:
        shape = (
            ""
            if self.shape is None
            else f"[{', '.join('any' if n is None else str(n) for n in self.shape)}]"
        )
        return f"{self.dtype or 'a tensor of shape '}{shape}"


def requires_key(
    key: KeyPattern,
    *,
    shape: Sequence[int | None] | None = None,
    dtype: Any = None,
    section: PathLike | list[PathLike] | None = None,
    otherwise: Otherwise = "refuse",
) -> RequiredKey:
    """Need a key of the state dict, as in `requires_key("encoder.{i}.weight", shape=[None, 768])`.

    Args:
        key: A key, a template or a compiled regex; at least one key must match, and all that do must fit.
        shape: The shape; None in it stands for any length.
        dtype: The dtype, or its name in torch.
        section: The path of the state dict, or a list of paths; None is the model's.
        otherwise: "refuse" such a checkpoint, or record the migration as "not_applicable".
    """
    compiled(key)
    return RequiredKey(
        key,
        shape=None if shape is None else tuple(shape),
        dtype=None if dtype is None else str(dtype).removeprefix("torch."),
        section=to_sections(section),
        otherwise=otherwise,
    )


@dataclass(frozen=True)
class RequiredValue(Requirement):
    """A path at which something must stand, and the values that it may have; none given, any."""

    path: Path
    values: tuple[Any, ...] = ()

    def unmet(self, ckpt: CkptType) -> str | None:
        try:
            items = parent_items(ckpt, self.path)
            if self.path[-1] not in items:
                return str(not_found(items, self.path, len(self.path) - 1))
        except OperationError as error:
            return str(error)
        value = items.read(self.path[-1])
        if not self.values or any(_is_equal(value, wanted) for wanted in self.values):
            return None
        wanted = " or ".join(map(repr, self.values))
        return f"{show_path(self.path)} must be {wanted}, and is {_shown(value)}."


def requires_value(path: PathLike, *values: Any, otherwise: Otherwise = "refuse") -> RequiredValue:
    """Need a value at a path, as in `requires_value("hyper_parameters.arch", "resnet50")`.

    Args:
        path: Names joined by dots, or a tuple of names.
        *values: What it may be; without any, it need only be there.
        otherwise: "refuse" such a checkpoint, or record the migration as "not_applicable".
    """
    return RequiredValue(to_path(path), values, otherwise=otherwise)


def _is_equal(value: Any, wanted: Any) -> bool:
    # A foreign object cannot answer ==, a tensor answers with a tensor, and 1 is not True here.
    if isinstance(value, ForeignObject) or is_tensor(value):
        return False
    return type(value) is type(wanted) and bool(value == wanted)


def _shown(value: Any) -> str:
    if is_tensor(value):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."

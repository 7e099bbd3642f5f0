"""Operations that let two keys show one memory, or give each memory of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from migrate_ckpt.errors import NotInvertible, OperationError
from migrate_ckpt.migration import CkptType
from migrate_ckpt.operations.module_versions import versions_of
from migrate_ckpt.operations.moves import Action, Keep, Move, identity, replace_items
from migrate_ckpt.operations.operation import shown
from migrate_ckpt.operations.paths import PathLike
from migrate_ckpt.operations.patterns import (
    KeyPattern,
    check_same_placeholders,
    fill,
    match,
)
from migrate_ckpt.operations.sections import is_tensor, own_keys, to_sections
from migrate_ckpt.operations.state_dict_operation import (
    Missing,
    StateDictOperation,
    pattern_text,
    to_patterns,
)
from migrate_ckpt.operations.tensor_actions import dense, have_equal_bits, kind_of, of_kind


@dataclass(frozen=True)
class InPlace(StateDictOperation):
    """Changes which memory keys show; keys that were there keep their places, and modules their versions."""

    def __call__(self, ckpt: CkptType) -> CkptType:
        before = [
            (state_dict, list(state_dict), dict(versions_of(state_dict) or {}))
            for _, state_dict, _ in self._planned(ckpt)
        ]
        ckpt = super().__call__(ckpt)
        for state_dict, keys, known in before:
            order = dict.fromkeys([*keys, *state_dict])
            replace_items(state_dict, {key: state_dict[key] for key in order})
            versions = versions_of(state_dict)
            if versions is not None:
                replace_items(versions, {**known, **versions, **known})
        return ckpt


@dataclass(frozen=True)
class Tie(InPlace):
    """A key or template, and the one whose memory it comes to show."""

    key: str
    to: str

    def __post_init__(self) -> None:
        check_same_placeholders(self.key, self.to)
        if self.key == self.to:
            raise ValueError(f"tie needs two keys, and has {self.key!r} twice.")

    def moves(self, state_dict: Mapping[str, Any]) -> tuple[Move, ...]:
        keys = own_keys(state_dict)
        pairs = [
            (to, fill(self.key, found)) for to in keys if (found := match(self.to, to)) is not None
        ]
        if not pairs:
            return self._found_none([self.to], keys)
        moves = []
        for to, key in pairs:
            if key not in state_dict:
                moves.append(Move((to,), (to, key), Alias()))
            elif identity(state_dict[key]) != identity(state_dict[to]):
                moves.append(Move((to, key), (to, key), TieTensors()))
        return tuple(moves)


def tie(
    key: str,
    to: str,
    *,
    section: PathLike | list[PathLike] | None = None,
    missing: Missing = "error",
) -> Tie:
    """Let a key show the memory of another: `tie("lm_head.weight", "embed.weight")`.

    Where the key is not there it is added, as the last one. Where it is, its tensor must equal the other, bit by bit,
    so that nothing is lost. A file then holds the memory once.

    Args:
        key: The key that is tied; a key or a template.
        to: The key whose memory it shows, with the same placeholders.
        section: The path of the state dict, or a list of paths; None is the model's.
        missing: What to do where `to` is not found: "error", or "skip".

    Raises:
        ValueError: The templates do not have the same placeholders, or are one.
    """
    return Tie(key, to, section=to_sections(section), missing=missing)


@dataclass(frozen=True)
class Untie(InPlace):
    """The keys that get memory of their own."""

    keys: tuple[KeyPattern, ...]

    def arguments(self) -> list[str]:
        return list(map(shown, self.keys))

    def moves(self, state_dict: Mapping[str, Any]) -> tuple[Move, ...]:
        keys = own_keys(state_dict)
        meant = {
            key for key in keys if any(match(pattern, key) is not None for pattern in self.keys)
        }
        if not meant:
            return self._found_none(map(pattern_text, self.keys), keys)
        tied: dict[Any, list[str]] = {}
        for key in keys:
            if is_tensor(state_dict[key]):
                tied.setdefault(identity(state_dict[key]), []).append(key)
        moves = []
        for group in tied.values():
            # One of them keeps the memory: one that is not meant, if there is any.
            listed = tuple(sorted(group, key=lambda key: key in meant))
            apart = tuple(n for n, key in enumerate(listed) if n and key in meant)
            if apart:
                moves.append(Move(listed, listed, UntieTensors(apart)))
        return tuple(moves)


def untie(
    *keys: KeyPattern,
    section: PathLike | list[PathLike] | None = None,
    missing: Missing = "error",
) -> Untie:
    """Give tied keys memory of their own: `untie("lm_head.weight")`. Keys that are not tied stay as they are.

    An optimizer has one state for what is tied, and nobody knows how it would share out: with
    `follow(uncarried="drop")` it starts afresh for these parameters, otherwise the checkpoint is refused.

    Args:
        *keys: Keys, templates or compiled regexes. Where all keys of one memory are meant, the first keeps it.
        section: The path of the state dict, or a list of paths; None is the model's.
        missing: What to do where no key is found: "error", or "skip".
    """
    if not keys:
        raise ValueError("untie needs a key.")
    return Untie(to_patterns(keys), section=to_sections(section), missing=missing)


@dataclass(frozen=True)
class Alias:
    """Let one value stand under two keys."""

    reads = False

    def __call__(self, values: Sequence[Any]) -> Sequence[Any]:
        return [values[0], values[0]]

    def inverse(self, values: Sequence[Any]) -> Action:
        return Unalias()

    def for_moments(self) -> Action:
        return self


@dataclass(frozen=True)
class Unalias:
    """Give up the second of two keys, which shows what the first does."""

    reads = False

    def __call__(self, values: Sequence[Any]) -> Sequence[Any]:
        return values[:1]

    def inverse(self, values: Sequence[Any]) -> Action:
        if identity(values[0]) != identity(values[1]):
            raise NotInvertible("they are not tied, and the second would be given up.")
        return Alias()

    def for_moments(self) -> Action:
        return self


@dataclass(frozen=True)
class TieTensors:
    """Let equal tensors be the first of them."""

    reads = True

    def __call__(self, values: Sequence[Any]) -> Sequence[Any]:
        first = dense(values[0])
        for value in values[1:]:
            if not have_equal_bits(first, dense(value)):
                raise OperationError(
                    "they differ, and tied they would be one tensor. Drop the one that is not wanted first."
                )
        return [values[0]] * len(values)

    def inverse(self, values: Sequence[Any]) -> Action:
        first = identity(values[0])
        apart = tuple(n for n, value in enumerate(values) if identity(value) != first)
        return UntieTensors(apart)

    def for_moments(self) -> Action:
        return _KeepFirst()


@dataclass(frozen=True)
class UntieTensors:
    """Give the tensors at some positions memory of their own."""

    apart: tuple[int, ...]
    reads = True

    def __call__(self, values: Sequence[Any]) -> Sequence[Any]:
        import torch

        made = list(values)
        for position in self.apart:
            tensor = dense(values[position])
            made[position] = of_kind(
                kind_of(tensor), tensor.detach().clone(memory_format=torch.contiguous_format)
            )
        return made

    def inverse(self, values: Sequence[Any]) -> Action:
        return TieTensors()

    def for_moments(self) -> Action | None:
        return None


@dataclass(frozen=True)
class _KeepFirst(Keep):
    """Keep what the first has, for all."""

    def __call__(self, values: Sequence[Any]) -> Sequence[Any]:
        return [values[0]] * len(values)

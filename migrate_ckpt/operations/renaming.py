"""Operations that give keys other names; no tensor is touched."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from migrate_ckpt.operations.moves import Move
from migrate_ckpt.operations.operation import Operation, shown
from migrate_ckpt.operations.paths import PathLike
from migrate_ckpt.operations.patterns import (
    KeyPattern,
    check_same_placeholders,
    compiled,
    fill,
    is_exact,
    typed_as,
)
from migrate_ckpt.operations.sections import own_keys, to_sections
from migrate_ckpt.operations.state_dict_operation import Missing, StateDictOperation


@dataclass(frozen=True)
class Rename(StateDictOperation):
    """Pairs of what keys are called and what they become, all at once."""

    pairs: tuple[tuple[KeyPattern, str], ...]

    def __post_init__(self) -> None:
        if not self.pairs:
            raise ValueError("rename needs something to rename.")
        for old, new in self.pairs:
            if isinstance(old, str):
                check_same_placeholders(old, new)

    def arguments(self) -> list[str]:
        if len(self.pairs) == 1:
            return [shown(part) for part in self.pairs[0]]
        return ["{" + ", ".join(f"{shown(old)}: {new!r}" for old, new in self.pairs) + "}"]

    def moves(self, state_dict: Mapping[str, Any]) -> tuple[Move, ...]:
        keys = own_keys(state_dict)
        new_names: list[tuple[str, str]] = []
        missing = []
        for old, new in self.pairs:
            found = _renamed(old, new, keys, state_dict)
            new_names += found
            if not found:
                missing.append(old if isinstance(old, str) else old.pattern)
        if missing:
            self._found_none(missing, keys)
        # One key that two pairs give the same name is renamed once; else the moves collide.
        return tuple(Move((old,), (new,)) for old, new in dict.fromkeys(new_names))

    def declared_inverse(self) -> tuple[Operation, ...]:
        return (replace(self, pairs=self.turned_round()),)

    def turned_round(self) -> tuple[tuple[str, str], ...]:
        """Return the pairs of new names and old ones.

        Raises:
            NotInvertible: An old name is a regex, or two names become one.
        """
        back: dict[str, str] = {}
        for old, new in self.pairs:
            if not isinstance(old, str):
                raise self._not_invertible(
                    "a regex does not tell the old names, as a template does"
                )
            if new in back:
                raise self._not_invertible(f"{new!r} may have been {back[new]!r} or {old!r}")
            back[new] = old
        return tuple((typed_as(new, old), old) for new, old in back.items())


def _renamed(
    old: KeyPattern, new: str, keys: list[str], state_dict: Mapping[str, Any]
) -> list[tuple[str, str]]:
    if isinstance(old, str) and is_exact(old):
        return [(old, new)] if old in state_dict else []
    hits = [found for found in map(compiled(old).fullmatch, keys) if found]
    if isinstance(old, str):
        return [(found.string, fill(new, found.groupdict())) for found in hits]
    return [(found.string, found.expand(new)) for found in hits]


def rename(
    old: KeyPattern | Mapping[str, str],
    new: str | None = None,
    *,
    section: PathLike | list[PathLike] | None = None,
    missing: Missing = "error",
) -> Rename:
    r"""Give keys other names: `rename("a.weight", "b.weight")`.

    Args:
        old: A key; a template (`"layers.{i}.fc.weight"`); a compiled regex, which must match the whole key; or a
            mapping of old names to new ones, which are given all at once, so that two may change places.
        new: The new name. It has the placeholders of the template, each once; for a regex it is what
            `re.Match.expand` takes (`r"blocks.\1.weight"`). None for a mapping.
        section: The path of the state dict, or a list of paths; None is the model's.
        missing: What to do where a name has no key: "error", or "skip" it.

    Raises:
        ValueError: The templates do not have the same placeholders.
    """
    if isinstance(old, Mapping):
        if new is not None:
            raise TypeError("rename takes a mapping alone, or an old and a new name.")
        pairs: tuple[tuple[KeyPattern, str], ...] = tuple(old.items())
    elif new is None or not isinstance(old, (str, re.Pattern)):
        raise TypeError("rename takes an old and a new name, or a mapping of them.")
    else:
        pairs = ((old, new),)
    return Rename(pairs, section=to_sections(section), missing=missing)


@dataclass(frozen=True)
class StripPrefix(StateDictOperation):
    """Prefixes to take off, each as often as it comes; anywhere or in front only."""

    prefixes: tuple[str, ...]
    anywhere: bool = field(default=False, kw_only=True)

    def arguments(self) -> list[str]:
        return list(map(repr, self.prefixes))

    def moves(self, state_dict: Mapping[str, Any]) -> tuple[Move, ...]:
        keys = own_keys(state_dict)
        moves = tuple(Move((key,), (new,)) for key in keys if (new := self._strip(key)) != key)
        return moves or self._found_none([f"{prefix}.*" for prefix in self.prefixes], keys)

    def declared_inverse(self) -> tuple[Operation, ...]:
        if self.anywhere or len(self.prefixes) > 1 or self.missing == "skip":
            raise self._not_invertible("it does not tell which keys had which prefix")
        return (AddPrefix(self.prefixes[0], section=self.section),)

    def _strip(self, key: str) -> str:
        names = "|".join(map(re.escape, self.prefixes))
        # The last component is what is named, never a part of the prefix.
        pattern = rf"(?:(?<=\.)|^)(?:(?:{names})\.)+" if self.anywhere else rf"^(?:(?:{names})\.)+"
        return re.sub(pattern, "", key)


def strip_prefix(
    *prefixes: str,
    anywhere: bool = False,
    section: PathLike | list[PathLike] | None = None,
    missing: Missing = "error",
) -> StripPrefix:
    """Take prefixes off all keys that have them: `strip_prefix("module", "_orig_mod")`.

    They are taken off between components only (`my_module.fc` keeps its name), as often as they come and in any
    order: `module._orig_mod.fc.weight` is `fc.weight` then. Keys without them stay.

    Args:
        *prefixes: One or more components each, with or without the dot at the end.
        anywhere: Take them off inside of keys too (`encoder._orig_mod.fc.weight`).
        section: The path of the state dict, or a list of paths; None is the model's.
        missing: What to do where no key has one: "error", or "skip".
    """
    return StripPrefix(
        tuple(map(_bare, prefixes)) or _no_prefix(),
        anywhere=anywhere,
        section=to_sections(section),
        missing=missing,
    )


@dataclass(frozen=True)
class AddPrefix(StateDictOperation):
    """A prefix to put before all keys."""

    prefix: str

    def moves(self, state_dict: Mapping[str, Any]) -> tuple[Move, ...]:
        keys = own_keys(state_dict)
        if not keys:
            return self._found_none(["*"], keys)
        return tuple(Move((key,), (f"{self.prefix}.{key}",)) for key in keys)

    def declared_inverse(self) -> tuple[Operation, ...]:
        # Once only: a key may have begun with it before.
        once = re.compile(rf"{re.escape(self.prefix)}\.(.+)", re.DOTALL)
        return (Rename(((once, r"\1"),), section=self.section, missing=self.missing),)


def add_prefix(
    prefix: str,
    *,
    section: PathLike | list[PathLike] | None = None,
    missing: Missing = "error",
) -> AddPrefix:
    """Put a prefix before all keys: `add_prefix("model")`.

    Args:
        prefix: One or more components, with or without the dot at the end.
        section: The path of the state dict, or a list of paths; None is the model's.
        missing: What to do where there is no key at all: "error", or "skip".
    """
    return AddPrefix(_bare(prefix), section=to_sections(section), missing=missing)


def _bare(prefix: str) -> str:
    bare = prefix.removesuffix(".")
    if not all(bare.split(".")):
        raise ValueError(f"{prefix!r} is no prefix: it is made of components with a dot between.")
    return bare


def _no_prefix() -> tuple[str, ...]:
    raise ValueError("strip_prefix needs a prefix.")

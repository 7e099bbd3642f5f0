"""The base of the operations that work on a state dict; each only says which keys it moves."""

from __future__ import annotations

import difflib
import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from migrate_ckpt.errors import KeysNotFound, OperationError
from migrate_ckpt.migration import CkptType
from migrate_ckpt.operations.module_versions import versions_of
from migrate_ckpt.operations.moves import Move, apply_moves, list_keys, replace_items
from migrate_ckpt.operations.operation import Operation
from migrate_ckpt.operations.paths import Path, show_path, write_path
from migrate_ckpt.operations.patterns import KeyPattern, compiled
from migrate_ckpt.operations.sections import (
    Sections,
    StateDict,
    find_sections,
    is_history,
    own_keys,
)

Missing: TypeAlias = Literal["error", "skip"]
"""What to do where no key is found: refuse, or do nothing."""


@dataclass(frozen=True)
class StateDictOperation(Operation):
    """Moves keys of one or more sections of a checkpoint."""

    section: Sections = field(default=None, kw_only=True)
    missing: Missing = field(default="error", kw_only=True)

    @abstractmethod
    def moves(self, state_dict: Mapping[str, Any]) -> tuple[Move, ...]:
        """Return the moves it makes in a state dict; tells old keys, new keys and actions.

        Raises:
            KeysNotFound, IncompleteGroup: The keys are not there as they must be.
        """

    def section_moves(self, ckpt: CkptType) -> list[tuple[Path, tuple[Move, ...]]]:
        """Return the path of each section it works on, with the moves it makes there."""
        return [(path, moves) for path, _, moves in self._planned(ckpt)]

    def __call__(self, ckpt: CkptType) -> CkptType:
        for path, state_dict, moves in self._planned(ckpt):
            try:
                apply_moves(state_dict, moves)
            except OperationError as error:
                raise self._located(error, path) from error.__cause__
        return ckpt

    def option(self, name: str) -> str:
        if name == "section" and self.section is not None:
            paths = [write_path(path) for path in self.section]
            return paths[0] if len(paths) == 1 else f"[{', '.join(paths)}]"
        return super().option(name)

    def inverse(self, ckpt: CkptType) -> tuple[Operation, ...]:
        inverses = []
        for path, state_dict, moves in self._planned(ckpt):
            try:
                back = tuple(move.inverse(state_dict) for move in moves)
            except OperationError as error:
                raise self._located(error, path) from error.__cause__
            versions = versions_of(state_dict)
            inverses.append(
                Undo(
                    back,
                    order=tuple(own_keys(state_dict)),
                    versions=None if versions is None else tuple(_without_history(versions)),
                    section=(path,),
                )
            )
        return tuple(inverses)

    def reads(self, ckpt: CkptType) -> tuple[Path, ...]:
        return tuple(
            (*path, key)
            for path, moves in self.section_moves(ckpt)
            for move in moves
            if move.action.reads
            for key in move.sources
        )

    def _planned(self, ckpt: CkptType) -> list[tuple[Path, StateDict, tuple[Move, ...]]]:
        try:
            sections = find_sections(ckpt, self.section)
        except OperationError as error:
            raise self._located(error, None) from None
        planned = []
        for path, state_dict in sections:
            try:
                planned.append((path, state_dict, self.moves(state_dict)))
            except OperationError as error:
                raise self._located(error, path) from error.__cause__
        return planned

    def _located(self, error: OperationError, path: Path | None) -> OperationError:
        error.operation = str(self)
        if path is not None:
            error.args = (f"In {show_path(path)}: {error}",)
        return error

    def _found_none(self, wanted: Iterable[str], keys: Sequence[str]) -> tuple[Move, ...]:
        """Answer where no key is found: with no moves, or with an error that says what is there."""
        if self.missing == "skip":
            return ()
        missing = list(wanted)
        near = [n for text in missing for n in difflib.get_close_matches(text, keys, n=2)]
        hint = f"; close to it is {list_keys(near)}" if near else f"; there is {list_keys(keys, 3)}"
        raise KeysNotFound(f"no key is {list_keys(missing)}{hint if keys else ''}.", keys=missing)


def to_patterns(keys: KeyPattern | Sequence[KeyPattern]) -> tuple[KeyPattern, ...]:
    """Return one pattern or several as a tuple; a wrong template is refused.

    Raises:
        ValueError: There is none, or one is no template.
    """
    patterns = (keys,) if isinstance(keys, (str, re.Pattern)) else tuple(keys)
    if not patterns:
        raise ValueError("The list of keys is empty.")
    for pattern in patterns:
        compiled(pattern)
    return patterns


def pattern_text(pattern: KeyPattern) -> str:
    """Return a pattern as it is written in messages."""
    return pattern if isinstance(pattern, str) else pattern.pattern


def _without_history(versions: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the versions of a state dict, without the history that may stand beside them."""
    return [(module, version) for module, version in versions.items() if not is_history(module)]


@dataclass(frozen=True)
class Undo(StateDictOperation):
    """Moves recorded when an operation was applied, back to the keys, order and versions of then."""

    recorded: tuple[Move, ...]
    order: tuple[str, ...] = field(kw_only=True)
    versions: tuple[tuple[str, Any], ...] | None = field(default=None, kw_only=True)

    def moves(self, state_dict: Mapping[str, Any]) -> tuple[Move, ...]:
        missing = [k for move in self.recorded for k in move.sources if k not in state_dict]
        if missing:
            raise KeysNotFound(f"no key is {list_keys(missing)}.", keys=missing)
        return self.recorded

    def __call__(self, ckpt: CkptType) -> CkptType:
        super().__call__(ckpt)
        for _, state_dict in find_sections(ckpt, self.section):
            replace_items(state_dict, _in_order(state_dict, self.order))
            versions = versions_of(state_dict)
            if versions is not None and self.versions is not None:
                recorded = dict(self.versions)
                # The history of a flat state dict is that of now, not of then.
                history = {k: v for k, v in versions.items() if is_history(k)}
                replace_items(versions, {**recorded, **history})
        return ckpt

    def __str__(self) -> str:
        return f"undo({len(self.recorded)} moves)"


def _in_order(items: Mapping[str, Any], order: Sequence[str]) -> dict[str, Any]:
    """Return the items with the keys of the order in it, in the places that they hold together."""
    known = iter([key for key in order if key in items])
    ordered = set(order)
    keys = [next(known) if key in ordered else key for key in items]
    return {key: items[key] for key in keys}

"""Moves: which keys of a state dict give way to which, and what becomes of their values."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from migrate_ckpt.errors import KeyCollision, OperationError
from migrate_ckpt.operations.module_versions import move_versions, versions_of
from migrate_ckpt.operations.sections import StateDict, is_tensor


class Action(Protocol):
    """What becomes of the values of a move. It is a value itself, and can be compared.

    `reads` says whether it looks at their data; one that does not only carries them along.
    """

    @property
    def reads(self) -> bool: ...

    def __call__(self, values: Sequence[Any]) -> Sequence[Any]:
        """Return a value for each target, given one for each source."""

    def inverse(self, values: Sequence[Any]) -> Action:
        """Return what undoes it, given the values it is applied to.

        Raises:
            NotInvertible: Nothing does.
        """

    def for_moments(self) -> Action | None:
        """Return what becomes of what an optimizer keeps for the values; None if that cannot be said.

        One that reads is given tensors of the values' shapes; another one whole states, which are None where there
        is none, and gives None for what has none.
        """


@dataclass(frozen=True)
class Keep:
    """Carry the values over as they are."""

    reads = False

    def __call__(self, values: Sequence[Any]) -> Sequence[Any]:
        return values

    def inverse(self, values: Sequence[Any]) -> Action:
        return self

    def for_moments(self) -> Action:
        return self


KEEP = Keep()


@dataclass(frozen=True)
class Move:
    """The targets stand where the first source stood; without a source they go to the end."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    action: Action = KEEP

    def inverse(self, state_dict: StateDict) -> Move:
        """Return the move back from what this one makes of a state dict."""
        values = [state_dict[key] for key in self.sources]
        try:
            return Move(self.targets, self.sources, self.action.inverse(values))
        except OperationError as error:
            raise type(error)(f"{list_keys(self.sources)}: {error}", keys=self.sources) from error


def apply_moves(state_dict: StateDict, moves: Sequence[Move]) -> None:
    """Make all moves at once, in place; the module versions in `_metadata` go with the keys.

    Raises:
        KeyCollision: Two keys would become one, or one key is moved twice. Nothing has changed.
        OperationError: An action cannot be done to the values. Nothing has changed.
    """
    order = _order(list(state_dict), moves)
    made = _make(state_dict, moves)
    versions = versions_of(state_dict)
    new_versions = None if versions is None else move_versions(versions, state_dict, moves)
    replace_items(state_dict, {key: made[key] if key in made else state_dict[key] for key in order})
    if versions is not None and new_versions is not None:
        replace_items(versions, new_versions)


def replace_items(mapping: Any, items: dict[Any, Any]) -> None:
    """Give a mapping other items, in their order; it stays the same object with its attributes."""
    mapping.clear()
    mapping.update(items)


def _order(keys: Sequence[str], moves: Sequence[Move]) -> list[str]:
    sources = [key for move in moves for key in move.sources]
    _refuse_repeated(sources, "would be moved more than once")
    first = {move.sources[0]: move for move in moves if move.sources}
    moved = set(sources)
    order: list[str] = []
    for key in keys:
        if key in first:
            order += first[key].targets
        elif key not in moved:
            order.append(key)
    order += [key for move in moves if not move.sources for key in move.targets]
    _refuse_repeated(order, "would hold two values: another key stands or comes to stand there")
    return order


def _refuse_repeated(keys: Sequence[str], what: str) -> None:
    seen: set[str] = set()
    repeated = [key for key in keys if key in seen or seen.add(key)]  # type: ignore[func-returns-value]
    if repeated:
        raise KeyCollision(f"{list_keys(repeated)} {what}.", keys=repeated)


def _make(state_dict: StateDict, moves: Iterable[Move]) -> dict[str, Any]:
    """Return the value of each target. What is tied and goes the same way is tied again."""
    made: dict[str, Any] = {}
    known: dict[Hashable, Sequence[Any]] = {}
    for move in moves:
        values = [state_dict[key] for key in move.sources]
        same = (move.action, *map(identity, values)) if move.action.reads else move
        if same not in known:
            known[same] = _act(move, values)
        made.update(zip(move.targets, known[same], strict=True))
    return made


def _act(move: Move, values: Sequence[Any]) -> Sequence[Any]:
    try:
        return move.action(values)
    except OperationError as error:
        raise type(error)(f"{list_keys(move.sources)}: {error}", keys=move.sources) from error


def identity(value: Any) -> Hashable:
    """Tell which memory a tensor shows and how; two with one identity are one tensor."""
    if not is_tensor(value):
        return id(value)
    storage = value.untyped_storage()._cdata
    return storage, value.dtype, value.storage_offset(), tuple(value.shape), value.stride()


def list_keys(keys: Iterable[str], most: int = 5) -> str:
    """Return keys for a message, the first few of many."""
    shown = list(dict.fromkeys(keys))
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return ", ".join(map(repr, shown[:most])) + more

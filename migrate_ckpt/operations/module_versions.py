"""Keeps the `_metadata` of a state dict in step with its keys.

A state dict of torch has, beside its items, an attribute `_metadata`: for each module its path and a version, which
decides how `load_state_dict` reads the module's keys. Modules without keys of their own (a ReLU) have one too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

from migrate_ckpt.operations.sections import is_history, own_keys

if TYPE_CHECKING:
    from migrate_ckpt.operations.moves import Move


def versions_of(state_dict: Mapping[str, Any]) -> MutableMapping[str, Any] | None:
    """Return the `_metadata` of a state dict, if it has one."""
    metadata = getattr(state_dict, "__dict__", {}).get("_metadata")
    return metadata if isinstance(metadata, MutableMapping) else None


def move_versions(
    versions: Mapping[str, Any], state_dict: Mapping[str, Any], moves: Sequence[Move]
) -> dict[str, Any]:
    """Return the versions that belong to the keys after the moves, in their order.

    A module goes where its keys go. One without keys goes with the nearest module above it, and one whose keys have
    all gone is forgotten. Where two modules become one, the one whose own keys stay there has the word; then one that
    moves there as a whole; then the first.
    """
    goes_to = _Destinations(own_keys(state_dict), moves)
    claims: dict[str, tuple[int, Any]] = {}
    for module, version in versions.items():
        if type(module) is not str or is_history(module):
            claims[module] = (0, version)
            continue
        for place, rank in goes_to.of(module):
            if place not in claims or rank < claims[place][0]:
                claims[place] = (rank, version)
    return {module: version for module, (_, version) in claims.items()}


_STAYS, _MOVES, _PASSES = range(3)


class _Destinations:
    """Where each module of a state dict goes."""

    def __init__(self, keys: Sequence[str], moves: Sequence[Move]) -> None:
        targets = {key: move.targets for move in moves for key in move.sources}
        new_keys = [key for key in keys if key not in targets]
        new_keys += [key for move in moves for key in move.targets]
        self._modules_left = {module for key in new_keys for module in _modules_above(key)}
        self._below: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
        for key in keys:
            for module in _modules_above(key):
                self._below.setdefault(module, []).append((key, targets.get(key, (key,))))

    def of(self, module: str) -> list[tuple[str, int]]:
        """Return each path that a module comes to stand at, with the rank of its claim on it."""
        if module not in self._below:
            return self._with_the_one_above(module)
        places = self._places(module)
        if any(new == (key,) for key, new in self._deciding(module)):
            return [
                (place, _STAYS if place == module else _PASSES) for place in places | {module: None}
            ]
        if places:
            return [(place, _MOVES) for place in places]
        return [(module, _PASSES)] if module in self._modules_left else []

    def _with_the_one_above(self, module: str) -> list[tuple[str, int]]:
        above = module
        while above:
            above = above.rpartition(".")[0]
            if above in self._below:
                rest = module[len(above) :].lstrip(".")
                return [(_join(place, rest), rank) for place, rank in self.of(above)]
        return [(module, _STAYS)]

    def _deciding(self, module: str) -> list[tuple[str, tuple[str, ...]]]:
        """Return the keys that decide: the module's own, or, where it has none, all below it."""
        below = self._below[module]
        return [pair for pair in below if _owner(pair[0]) == module] or below

    def _places(self, module: str) -> dict[str, None]:
        own = [new for key, new in self._below[module] if _owner(key) == module]
        if own:
            return dict.fromkeys(_owner(new) for targets in own for new in targets)
        candidates = [
            dict.fromkeys(_places_by_rest(key, targets, module))
            for key, targets in self._below[module]
            if targets
        ]
        if not candidates:
            return {}
        return {place: None for place in candidates[0] if all(place in c for c in candidates)}


def _places_by_rest(key: str, targets: Iterable[str], module: str) -> Iterable[str]:
    rest = key[len(module) + 1 :] if module else key
    for target in targets:
        if target == rest:
            yield ""
        elif target.endswith(f".{rest}"):
            yield target[: -len(rest) - 1]


def _modules_above(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:count]) for count in range(len(parts))]


def _owner(key: str) -> str:
    return key.rpartition(".")[0]


def _join(module: str, rest: str) -> str:
    return ".".join(filter(None, (module, rest)))

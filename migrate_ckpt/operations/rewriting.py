"""Goes through everything in a checkpoint once and puts other values in place of some, around cycles too."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from migrate_ckpt.errors import KeyCollision
from migrate_ckpt.foreign import ForeignGlobal, ForeignObject, recipe
from migrate_ckpt.operations.moves import replace_items
from migrate_ckpt.operations.paths import Path, show_path
from migrate_ckpt.operations.sections import is_tensor

SAME: Any = object()
"""What `Rewriting.replacement` gives for a value that stays, and is gone into."""


class Rewriting(ABC):
    """One pass. Lists, dicts and objects stay themselves; tuples and sets are made anew where a part changes.

    What stands at several places is replaced by one value at all of them. `replacement` may go into a part of what it
    replaces with `of`, and registers what it makes before that with `register`, for what leads back to it.
    """

    def __init__(self) -> None:
        self._done: dict[int, tuple[Any, Any]] = {}

    @abstractmethod
    def replacement(self, value: Any, path: Path) -> Any:
        """Return what to put in place of a value, or `SAME`."""

    def register(self, value: Any, made: Any) -> None:
        # The value is kept with what it becomes: an identity is only good while its owner lives.
        self._done[id(value)] = value, made

    def of(self, value: Any, path: Path) -> Any:
        """Return what a value becomes."""
        if id(value) in self._done:
            return self._done[id(value)][1]
        made = self.replacement(value, path)
        if made is SAME:
            made = self._into(value, path)
        self.register(value, made)
        return made

    def _into(self, value: Any, path: Path) -> Any:
        if isinstance(value, ForeignObject):
            self.register(value, value)
            self._into_recipe(value, path)
        elif isinstance(value, dict):
            self.register(value, value)
            self._into_dict(value, path)
        elif isinstance(value, list):
            self.register(value, value)
            value[:] = [self.of(item, (*path, str(i))) for i, item in enumerate(value)]
        elif type(value) is tuple:
            items = tuple(self.of(item, (*path, str(i))) for i, item in enumerate(value))
            return items if _differ(items, value) else value
        elif type(value) in (set, frozenset):
            members = [self.of(item, path) for item in value]
            return type(value)(members) if _differ(members, list(value)) else value
        elif _has_attributes(value):
            self.register(value, value)
            self._into_dict(vars(value), path)
        return value

    def _into_dict(self, held: dict[Any, Any], path: Path) -> None:
        items: dict[Any, Any] = {}
        for key, value in held.items():
            at = (*path, key if type(key) is str else repr(key))
            new_key = self.of(key, at)
            if new_key in items:
                raise KeyCollision(
                    f"Two keys become {new_key!r} in {show_path(path)}.", keys=[show_path(at)]
                )
            items[new_key] = self.of(value, at)
        if _differ(list(items), list(held)):
            replace_items(held, items)
        else:
            held.update(items)
        # Such as the versions of an OrderedDict that is a state dict.
        if type(held) is not dict and isinstance(getattr(held, "__dict__", None), dict):
            self._into_dict(vars(held), path)

    def _into_recipe(self, value: ForeignObject, path: Path) -> None:
        made = recipe(value)
        made.function = self.of(made.function, path)
        made.args = self.of(made.args, path)
        made.kwargs = self.of(made.kwargs, path)
        made.setter = self.of(made.setter, path)
        made.state = self.of(made.state, path)
        if made.items is not None:
            made.items = self.of(made.items, path)
        self._into_dict(vars(value), path)


def _differ(new: Any, old: Any) -> bool:
    return any(one is not other for one, other in zip(new, old, strict=True))


def _has_attributes(value: Any) -> bool:
    if isinstance(value, (type, ForeignGlobal)) or is_tensor(value) or callable(value):
        return False
    return (
        isinstance(getattr(value, "__dict__", None), dict) and type(value).__module__ != "builtins"
    )


def show_paths(paths: list[tuple[Path, str]], most: int = 5) -> str:
    """Return places with what stands there, for a message."""
    return ", ".join(_shown(paths[:most])) + (
        f" and {len(paths) - most} more" if len(paths) > most else ""
    )


def _shown(paths: list[tuple[Path, str]]) -> Iterator[str]:
    for path, what in paths:
        yield f"{show_path(path)} ({what})"

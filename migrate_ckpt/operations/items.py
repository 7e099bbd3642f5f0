"""Names and values of whatever holds some: a mapping, an object with attributes, a configuration of OmegaConf, a list.

Foreign objects and real ones are alike here. Nothing is imported for it, and no code of the object's class is called
where the object keeps its names in a dict, as nearly all do.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

from migrate_ckpt.errors import OperationError, SectionNotFound
from migrate_ckpt.foreign import ForeignObject, recipe
from migrate_ckpt.operations.moves import replace_items
from migrate_ckpt.operations.paths import Path, show_path
from migrate_ckpt.operations.sections import is_tensor

_PLAIN = (type(None), bool, int, float, str, bytes)


class Items:
    """The names that a value holds, and what stands under them."""

    def __init__(self, held: MutableMapping[str, Any]) -> None:
        self._held = held

    def names(self) -> list[Any]:
        return list(self._held)

    def __contains__(self, name: str) -> bool:
        return name in self._held

    def read(self, name: str) -> Any:
        return self._held[name]

    def write(self, name: str, value: Any) -> None:
        self._held[name] = value

    def take(self, name: str) -> Any:
        """Remove a name; gives what `put` takes."""
        return self._held.pop(name)

    def put(self, name: str, taken: Any) -> None:
        self._held[name] = taken

    def rename(self, old: str, new: str) -> None:
        """Give what stands under a name another one, in its place."""
        taken, names = self._held[old], self.names()
        self.take(old)
        self.put(new, taken)
        self.arrange(new if name == old else name for name in names)

    def arrange(self, names: Iterable[Any]) -> None:
        """Bring names into an order; those it does not know go to the end."""
        order = [name for name in names if name in self._held]
        known = set(order)
        order += [name for name in self._held if name not in known]
        if order != list(self._held):
            replace_items(self._held, {name: self._held[name] for name in order})


class _ConfigItems(Items):
    """Those of a DictConfig: each value stands in a node of its own, which knows its name."""

    def __init__(self, config: Any) -> None:
        super().__init__(vars(config)["_content"])
        self._config = config

    def read(self, name: str) -> Any:
        node = self._held[name]
        return vars(node).get("_val", node) if hasattr(node, "__dict__") else node

    def write(self, name: str, value: Any) -> None:
        if not isinstance(value, _PLAIN):
            raise OperationError(
                f"a {type(value).__name__} cannot be put into a configuration of OmegaConf: only "
                "numbers, texts and None. Make it plain with normalise first."
            )
        node = self._held.get(name)
        if node is None or "_val" not in vars(node):
            node = self._new_node(name)
        vars(node)["_val"] = value
        self._held[name] = node

    def put(self, name: str, taken: Any) -> None:
        vars(vars(taken)["_metadata"])["key"] = name
        self._held[name] = taken

    def _new_node(self, name: str) -> Any:
        """Make a node like another one, for only OmegaConf itself knows all that is in one."""
        omegaconf = sys.modules.get("omegaconf")
        if not isinstance(self._config, ForeignObject) and omegaconf is not None:
            return omegaconf.AnyNode(key=name, parent=self._config)
        for other in self._held.values():
            if _class_name(other) == "omegaconf.nodes.AnyNode":
                node = copy.copy(other)
                metadata = copy.copy(vars(other)["_metadata"])
                vars(metadata)["key"] = name
                vars(node)["_metadata"] = metadata
                return node
        raise OperationError(
            f"{name!r} cannot be put into a configuration of OmegaConf that has no plain value to "
            "go by. Make it plain with normalise first."
        )


class _ListItems(Items):
    """Those of a list, whose names are its positions."""

    def __init__(self, held: list[Any]) -> None:
        super().__init__({str(i): value for i, value in enumerate(held)})
        self._list = held

    def write(self, name: str, value: Any) -> None:
        if name not in self:
            raise OperationError(f"a list of {len(self._list)} has no position {name!r}.")
        self._list[int(name)] = value

    def take(self, name: str) -> Any:
        raise OperationError("what stands in a list cannot be renamed, moved or dropped by itself.")

    def put(self, name: str, taken: Any) -> None:
        self.write(name, taken)


def items_of(value: Any) -> Items | None:
    """Return the names that a value holds; None if it holds none."""
    if is_config(value, "DictConfig"):
        return _ConfigItems(value) if isinstance(vars(value).get("_content"), dict) else None
    if isinstance(value, MutableMapping):
        return Items(value)
    if type(value) is list:
        return _ListItems(value)
    if isinstance(value, (type, Mapping)) or is_tensor(value):
        return None
    if isinstance(value, ForeignObject):
        return Items(vars(value)) if recipe(value).state_kind in ("dict", "slots") else None
    held = getattr(value, "__dict__", None)
    return Items(held) if isinstance(held, dict) else None


def is_config(value: Any, name: str) -> bool:
    """Tell whether a value is a DictConfig or ListConfig, foreign or real."""
    return _class_name(value).startswith("omegaconf.") and _class_name(value).endswith(f".{name}")


def parent_items(ckpt: Any, path: Path) -> Items:
    """Return the names beside the last one of a path.

    Raises:
        SectionNotFound: The way there leads over something that is not there, or holds no names.
    """
    value = ckpt
    for depth, name in enumerate(path):
        items = items_of(value)
        if items is None:
            raise SectionNotFound(
                f"{show_path(path[:depth])} is a {type(value).__name__}, in which nothing has a "
                f"name: there is no {show_path(path)!r}.",
                keys=[show_path(path)],
            )
        if depth == len(path) - 1:
            return items
        if name not in items:
            raise not_found(items, path, depth)
        value = items.read(name)
    raise SectionNotFound("The checkpoint itself has no name that could be changed.")


def not_found(items: Items, path: Path, depth: int) -> SectionNotFound:
    """Return the error that says what is there in place of a path's name."""
    names = [name if type(name) is str else repr(name) for name in items.names()]
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return SectionNotFound(
        f"There is no {show_path(path[: depth + 1])!r}: {show_path(path[:depth])} has "
        f"{shown or 'nothing'}.",
        keys=[show_path(path)],
    )


def _class_name(value: Any) -> str:
    cls = value.__class__
    return f"{cls.__module__}.{cls.__qualname__}"

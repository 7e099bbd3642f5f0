"""The operation that leaves nothing but plain values, which load anywhere with `weights_only=True`."""

from __future__ import annotations

import argparse
import collections
import pathlib
import types
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from migrate_ckpt.errors import NotInvertible, OperationError
from migrate_ckpt.foreign import ForeignGlobal, ForeignObject, global_path, recipe
from migrate_ckpt.foreign_kinds import ForeignMapping, ForeignSequence
from migrate_ckpt.migration import CkptType
from migrate_ckpt.operations.items import is_config
from migrate_ckpt.operations.numpy_values import UNKNOWN, plain_numpy
from migrate_ckpt.operations.operation import Operation
from migrate_ckpt.operations.paths import Path, show_path
from migrate_ckpt.operations.rewriting import SAME, Rewriting, show_paths
from migrate_ckpt.operations.sections import is_tensor

_NAMESPACES = ("argparse.Namespace", "types.SimpleNamespace")
_PATHS = {
    **dict.fromkeys(("PosixPath", "PurePosixPath", "Path", "PurePath"), pathlib.PurePosixPath),
    **dict.fromkeys(("WindowsPath", "PureWindowsPath"), pathlib.PureWindowsPath),
}
# What torch's own pickles call to make tensors; weights_only=True knows them.
_TENSOR_MODULES = ("torch._utils", "torch._tensor", "torch.nn.parameter", "torch.storage")
_CONTAINERS = (dict, OrderedDict, list, tuple, set)
_PLAIN = (type(None), bool, int, float, complex, str, bytes, bytearray)


@dataclass(frozen=True)
class Normalise(Operation):
    """Patterns of further classes whose objects become dicts of their attributes."""

    classes: tuple[str, ...] = ()
    unknown: str = field(default="error", kw_only=True)

    def arguments(self) -> list[str]:
        return [f"classes={list(self.classes)!r}"] if self.classes else []

    def __call__(self, ckpt: CkptType) -> CkptType:
        survey = _Survey(ckpt, self.classes)
        if survey.unknown and self.unknown == "error":
            raise OperationError(
                f"There is no plain value for {show_paths(survey.unknown)}. Replace or drop it first, name its "
                'class in classes=[...] to keep its attributes as a dict, or leave it with unknown="keep".',
                operation=str(self),
                keys=[show_path(path) for path, _ in survey.unknown],
            )
        normalised: CkptType = _Normalising(self.classes).of(ckpt, ())
        return normalised

    def inverse(self, ckpt: CkptType) -> tuple[Operation, ...]:
        survey = _Survey(ckpt, self.classes)
        if survey.changes:
            raise NotInvertible(
                "normalise gives up the classes of what it makes plain.", operation=str(self)
            )
        return ()


def normalise(*, classes: Sequence[str] = (), unknown: str = "error") -> Normalise:
    """Turn everything into plain values, so that `torch.load(weights_only=True)` reads the result anywhere.

    NumPy's scalars become numbers and texts, its arrays tensors (arrays of texts: lists), paths texts, namespaces and
    OmegaConf's configurations dicts and lists (their interpolations stay texts), defaultdicts and other kinds of dict
    plain ones, deques lists, frozensets sets. Tensors, state dicts and their versions stay as they are.

    Args:
        classes: Paths or patterns (`"my_package.*"`) of further classes whose objects become dicts of their attributes.
        unknown: What to do where there is no plain value: "error", which names the places, or "keep" it.
    """
    if isinstance(classes, str) or unknown not in ("error", "keep"):
        raise ValueError('normalise takes a list of classes, and unknown="error" or "keep".')
    return Normalise(tuple(classes), unknown=unknown)


class _Normalising(Rewriting):
    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__()
        self._classes = classes

    def replacement(self, value: Any, path: Path) -> Any:
        leaf = _plain_leaf(value)
        if leaf is not UNKNOWN:
            return leaf
        if type(value) is frozenset:
            return {self.of(item, path) for item in value}
        items = _dict_items(value, self._classes)
        if items is not None:
            self.register(value, items)
            self._into_dict(items, path)
            return items
        members = _list_items(value)
        if members is not None:
            self.register(value, members)
            members[:] = [self.of(item, (*path, str(i))) for i, item in enumerate(members)]
            return members
        return SAME if type(value) in _CONTAINERS else value


class _Survey:
    """Goes where normalising goes and changes nothing: notes what would change, and what has no plain value."""

    def __init__(self, ckpt: Any, classes: Sequence[str]) -> None:
        self.changes = 0
        self.unknown: list[tuple[Path, str]] = []
        self._classes = classes
        self._seen: dict[int, Any] = {}
        self._look(ckpt, ())

    def _look(self, value: Any, path: Path) -> None:
        leaf = _plain_leaf(value)
        if leaf is not UNKNOWN:
            self.changes += leaf is not value
            return
        if id(value) in self._seen:
            return
        self._seen[id(value)] = value
        held = _dict_items(value, self._classes)
        members = _list_items(value) if held is None else None
        if held is None and members is None and not _is_plain(value):
            self.unknown.append((path, _class_path(value)))
        elif held is not None or type(value) in (dict, OrderedDict):
            self._look_into(value if held is None else held, path)
        else:
            for i, item in enumerate(_members(value) if members is None else members):
                self._look(item, (*path, str(i)))
        self.changes += held is not None or members is not None or type(value) is frozenset

    def _look_into(self, held: dict[Any, Any], path: Path) -> None:
        for key, item in [*held.items(), *getattr(held, "__dict__", {}).items()]:
            at = (*path, key if type(key) is str else repr(key))
            self._look(key, at)
            self._look(item, at)


def _members(value: Any) -> list[Any]:
    return list(value) if type(value) in _CONTAINERS or type(value) is frozenset else []


def _plain_leaf(value: Any) -> Any:
    """Return the plain value for one that has no parts; `UNKNOWN` for others."""
    if type(value) in _PLAIN or is_tensor(value):
        return value
    text = _path_text(value)
    return plain_numpy(value) if text is None else text


def _path_text(value: Any) -> str | None:
    if isinstance(value, ForeignObject):
        module, _, name = _class_path(value).rpartition(".")
        parts = recipe(value).args
        if module not in ("pathlib", "pathlib._local") or name not in _PATHS:
            return None
        return str(_PATHS[name](*parts)) if all(type(part) is str for part in parts) else None
    return str(value) if isinstance(value, pathlib.PurePath) else None


def _dict_items(value: Any, classes: Sequence[str]) -> dict[Any, Any] | None:
    """Return the items of what becomes a dict."""
    if is_config(value, "DictConfig"):
        content = vars(value).get("_content")
        return _without_nodes(content) if isinstance(content, dict) else None
    if isinstance(value, ForeignObject):
        return _foreign_items(value, classes)
    if isinstance(value, (argparse.Namespace, types.SimpleNamespace)):
        return dict(vars(value))
    if isinstance(value, dict) and type(value) not in (dict, OrderedDict):
        attributes = getattr(value, "__dict__", None)
        return None if attributes else dict(value)
    is_meant = not isinstance(value, type) and _is_meant(_class_path(value), classes)
    return dict(vars(value)) if is_meant and hasattr(value, "__dict__") else None


def _foreign_items(value: ForeignObject, classes: Sequence[str]) -> dict[Any, Any] | None:
    name, made = _class_path(value), recipe(value)
    if isinstance(value, ForeignMapping) or name == "collections.defaultdict":
        return None if vars(value) else dict(made.items or {})
    if name == "collections.Counter" and made.args and type(made.args[0]) is dict:
        return dict(made.args[0])
    is_object = made.state_kind in ("dict", "slots") or (made.state_kind is None and made.is_new)
    if is_object and (name in _NAMESPACES or _is_meant(name, classes)):
        return dict(vars(value))
    return None


def _list_items(value: Any) -> list[Any] | None:
    """Return the items of what becomes a list."""
    if is_config(value, "ListConfig"):
        content = vars(value).get("_content")
        return (
            list(_without_nodes(dict(enumerate(content))).values())
            if isinstance(content, list)
            else None
        )
    if isinstance(value, ForeignObject):
        is_list = isinstance(value, ForeignSequence) or _class_path(value) == "collections.deque"
        return list(recipe(value).items or []) if is_list and not vars(value) else None
    if isinstance(value, collections.deque):
        return list(value)
    if isinstance(value, list) and type(value) is not list:
        return None if getattr(value, "__dict__", None) else list(value)
    return None


def _without_nodes(content: dict[Any, Any]) -> dict[Any, Any]:
    """Return the values of a configuration's nodes, without resolving anything."""
    return {
        name: vars(node).get("_val", node) if hasattr(node, "__dict__") else node
        for name, node in content.items()
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, ForeignGlobal):
        return False
    if isinstance(value, ForeignObject):
        function = recipe(value).function
        return isinstance(function, ForeignGlobal) and function.__module__ in _TENSOR_MODULES
    if isinstance(value, type):
        return False
    return type(value) in (*_CONTAINERS, frozenset) or (
        type(value).__module__ == "torch" and type(value).__name__ in ("Size", "device", "dtype")
    )


def _is_meant(name: str, classes: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in classes)


def _class_path(value: Any) -> str:
    if isinstance(value, ForeignObject):
        function = recipe(value).function
        return global_path(function) if isinstance(function, ForeignGlobal) else "a call"
    return global_path(value if isinstance(value, type) else type(value))

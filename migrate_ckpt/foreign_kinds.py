"""Foreign objects that answer more than attributes: those with items, and those of some classes of Python's own.

What a class of Python's own does is known without importing what a file names: a `defaultdict` gives its default, a
`deque` keeps to its length, an `argparse.Namespace` answers `in` and `==`. Of another class with items it is taken for
granted that it keeps them as a dict or a list does.
"""

from __future__ import annotations

import argparse
import collections
from collections.abc import Callable, Iterable, Iterator, MutableMapping, MutableSequence
from typing import Any

from migrate_ckpt.foreign import (
    CONTAINER_METHODS,
    ForeignGlobal,
    ForeignObject,
    Recipe,
    cannot_answer,
    global_path,
)


class ForeignNamespace(ForeignObject):
    """An `argparse.Namespace`."""

    __slots__ = ()

    def __contains__(self, name: object) -> bool:
        return name in vars(self)

    def __bool__(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        if isinstance(other, (ForeignNamespace, argparse.Namespace)):
            return vars(self) == vars(other)
        return _is_other(self, other)

    __hash__ = ForeignObject.__hash__

    def __methods__(self) -> frozenset[str]:
        return frozenset(dir(argparse.Namespace))


class ForeignMapping(ForeignObject, MutableMapping[Any, Any]):
    """A foreign object that was built with keys and values, such as one of a dict subclass."""

    __slots__ = ()

    def __setattr__(self, name: str, value: Any) -> None:
        # Classes that make attributes of their items are common, and the file does not tell them from others.
        if name not in vars(self) or name in self.__recipe__.items:
            raise cannot_answer(self, f"the setting of {name!r}, which may be an item of it")
        super().__setattr__(name, value)

    def __getitem__(self, key: Any) -> Any:
        return self.__recipe__.items[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        _refuse_mirrored(self, key)
        self.__recipe__.items[key] = value

    def __delitem__(self, key: Any) -> None:
        _refuse_mirrored(self, key)
        del self.__recipe__.items[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.__recipe__.items)

    def __reversed__(self) -> Iterator[Any]:
        return iter(reversed(self.__recipe__.items))

    def __len__(self) -> int:
        return len(self.__recipe__.items)

    def __bool__(self) -> bool:
        return bool(self.__recipe__.items)

    def __contains__(self, key: object) -> bool:
        return key in self.__recipe__.items

    __eq__ = ForeignObject.__eq__
    __hash__ = ForeignObject.__hash__

    def get(self, key: Any, default: Any = None, /) -> Any:
        return self.__recipe__.items.get(key, default)

    def setdefault(self, key: Any, default: Any = None, /) -> Any:
        if key not in self:
            self[key] = default
        return self.__recipe__.items[key]

    def pop(self, key: Any, /, *default: Any) -> Any:
        if len(default) > 1 or key not in self:
            return self.__recipe__.items.pop(key, *default)
        value = self.__recipe__.items[key]
        del self[key]
        return value

    def popitem(self) -> tuple[Any, Any]:
        """Take the last item, as a dict does."""
        for key in reversed(self):
            return key, self.pop(key)
        raise KeyError("popitem(): the mapping is empty")

    def __methods__(self) -> frozenset[str]:
        return CONTAINER_METHODS


class ForeignDefaultDict(ForeignMapping):
    """A `collections.defaultdict`."""

    __slots__ = ()

    @property
    def default_factory(self) -> Any:
        return next(iter(self.__recipe__.args), None)

    def __getitem__(self, key: Any) -> Any:
        if key not in self:
            self[key] = _made_for_missing(self, key)
        return self.__recipe__.items[key]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ForeignDefaultDict):
            return bool(self.__recipe__.items == other.__recipe__.items)
        if isinstance(other, dict):
            return bool(self.__recipe__.items == other)
        return _is_other(self, other)

    __hash__ = ForeignObject.__hash__

    def __methods__(self) -> frozenset[str]:
        return frozenset(dir(collections.defaultdict))


_FACTORIES: dict[str, Callable[[], Any]] = {
    **{
        f"{module}.{kind.__name__}": kind
        for kind in (list, dict, set, frozenset, tuple, int, float, complex, bool, str, bytes)
        for module in ("builtins", "__builtin__")
    },
    # What protocol 2 writes for `int` and `str`, so that Python 2 can read it.
    "__builtin__.long": int,
    "__builtin__.unicode": str,
    "collections.OrderedDict": collections.OrderedDict,
}


class ForeignSequence(ForeignObject, MutableSequence[Any]):
    """A foreign object that was built with items in order, such as one of a list subclass."""

    __slots__ = ()

    def __getitem__(self, index: Any) -> Any:
        return self.__recipe__.items[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        self.__recipe__.items[index] = value

    def __delitem__(self, index: Any) -> None:
        del self.__recipe__.items[index]

    def __len__(self) -> int:
        return len(self.__recipe__.items)

    def __bool__(self) -> bool:
        return bool(self.__recipe__.items)

    __contains__ = MutableSequence.__contains__
    __iter__ = MutableSequence.__iter__

    def insert(self, index: int, value: Any, /) -> None:
        self.__recipe__.items.insert(index, value)

    def __methods__(self) -> frozenset[str]:
        return CONTAINER_METHODS


class ForeignDeque(ForeignSequence):
    """A `collections.deque`, with what it does beyond a list."""

    __slots__ = ()

    @property
    def maxlen(self) -> int | None:
        args = self.__recipe__.args
        return args[1] if len(args) == 2 else None

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a deque has no attribute {name!r} that could be set")

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(_position(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_position(index), value)

    def __delitem__(self, index: Any) -> None:
        super().__delitem__(_position(index))

    def __iter__(self) -> Iterator[Any]:
        return _each_of(self, range(len(self)))

    def __reversed__(self) -> Iterator[Any]:
        return _each_of(self, reversed(range(len(self))))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, (ForeignDeque, collections.deque)):
            return list(self) == list(other)
        return _is_other(self, other)

    __hash__ = ForeignObject.__hash__

    def insert(self, index: int, value: Any, /) -> None:
        if len(self) == self.maxlen:
            raise IndexError("deque already at its maximum size")
        super().insert(index, value)

    def append(self, value: Any, /) -> None:
        self.__recipe__.items.append(value)
        if self.maxlen is not None and len(self) > self.maxlen:
            del self.__recipe__.items[0]

    def appendleft(self, value: Any, /) -> None:
        self.__recipe__.items.insert(0, value)
        if self.maxlen is not None and len(self) > self.maxlen:
            del self.__recipe__.items[-1]

    def extend(self, values: Iterable[Any], /) -> None:
        for value in list(values):
            self.append(value)

    def extendleft(self, values: Iterable[Any], /) -> None:
        for value in list(values):
            self.appendleft(value)

    def pop(self) -> Any:  # type: ignore[override]
        return self.__recipe__.items.pop()

    def popleft(self) -> Any:
        return self.__recipe__.items.pop(0)

    def rotate(self, steps: int = 1, /) -> None:
        items = self.__recipe__.items
        at = -steps % len(items) if items else 0
        items[:] = items[at:] + items[:at]

    def __methods__(self) -> frozenset[str]:
        return frozenset(dir(collections.deque))


def _each_of(deque: ForeignDeque, positions: Iterable[int]) -> Iterator[Any]:
    items = deque.__recipe__.items
    count = len(items)
    for position in positions:
        if len(items) != count:
            raise RuntimeError("deque mutated during iteration")
        yield items[position]
    if len(items) != count:
        raise RuntimeError("deque mutated during iteration")


def _is_other(one: ForeignObject, other: object) -> bool:
    """What `==` gives for what is of none of the kinds that an object of Python's own could be equal to."""
    if isinstance(other, ForeignObject) and not isinstance(other, UNHASHABLE_KINDS):
        raise cannot_answer(one, f"whether it equals an object of {global_path(other.__class__)}")
    return False


def _refuse_mirrored(obj: ForeignMapping, key: Any) -> None:
    """Refuse a change of an item that is an attribute, too: its class would have set both."""
    if key in vars(obj):
        raise cannot_answer(obj, f"the change of the item {key!r}, which is an attribute, too")


def _made_for_missing(obj: ForeignDefaultDict, key: Any) -> Any:
    factory = obj.default_factory
    if factory is None:
        raise KeyError(key)
    make = _FACTORIES.get(global_path(factory) if isinstance(factory, ForeignGlobal) else "")
    if make is None:
        raise cannot_answer(obj, f"for the missing item {key!r}, which {factory!r} would make")
    return make()


def _position(index: Any) -> Any:
    if isinstance(index, slice):
        raise TypeError("sequence index must be integer, not 'slice'")
    return index


UNHASHABLE_KINDS = (ForeignNamespace, ForeignDefaultDict, ForeignDeque)
"""The kinds of Python's own. A foreign object has a hash all the same, so that whatever a file holds can be carried."""


KINDS: tuple[type[ForeignObject], ...] = (
    ForeignObject,
    ForeignMapping,
    ForeignSequence,
    *UNHASHABLE_KINDS,
)
"""Every class that a foreign object can have."""


def kind_of(made: Recipe) -> type[ForeignObject]:
    """The class whose objects answer for this recipe. Where it is one with items, the recipe has some from now on."""
    function = made.function
    path = global_path(function) if isinstance(function, ForeignGlobal) else ""
    kind, is_as_pickled = _KNOWN.get(path, (ForeignObject, _never))
    if not is_as_pickled(made):
        kind = _BY_ITEMS[type(made.items)]
    elif made.items is None and kind is not ForeignNamespace:
        made.items = {} if issubclass(kind, ForeignMapping) else []
    return kind


def _never(made: Recipe) -> bool:
    return False


def _is_namespace(made: Recipe) -> bool:
    return made.has_names and made.is_new and not made.args and made.items is None


def _is_default_dict(made: Recipe) -> bool:
    return _is_call(made) and len(made.args) <= 1 and type(made.items) is not list


def _is_deque(made: Recipe) -> bool:
    start, maxlen = (*made.args, (), None)[:2] if made.args else ((), None)
    items = made.items or []
    return (
        _is_call(made)
        and len(made.args) <= 2
        and type(start) in (tuple, list)
        and not start
        and type(items) is list
        and (maxlen is None or (type(maxlen) is int and len(items) <= maxlen))
    )


def _is_call(made: Recipe) -> bool:
    return not made.is_new and made.state_kind is None


_KNOWN: dict[str, tuple[type[ForeignObject], Callable[[Recipe], bool]]] = {
    "argparse.Namespace": (ForeignNamespace, _is_namespace),
    "collections.defaultdict": (ForeignDefaultDict, _is_default_dict),
    "collections.deque": (ForeignDeque, _is_deque),
}
_BY_ITEMS: dict[type, type[ForeignObject]] = {
    type(None): ForeignObject,
    dict: ForeignMapping,
    list: ForeignSequence,
}

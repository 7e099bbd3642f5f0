"""Records what a pickle does to the globals that it names, in place of doing it."""

from __future__ import annotations

import sys
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NoReturn

from migrate_ckpt.errors import TooLarge, UnsafePickle
from migrate_ckpt.foreign import (
    ForeignGlobal,
    ForeignObject,
    Recipe,
    Recorded,
    become,
)
from migrate_ckpt.foreign_kinds import kind_of
from migrate_ckpt.formats.keys import KeyCheck
from migrate_ckpt.formats.plain_values import NOT_FOLDED, Fold, plain_folds

if TYPE_CHECKING:
    from migrate_ckpt.formats.pickle_reader import TensorBuilder

MAX_NAME_LENGTH = 1000
MAX_GLOBALS = 20_000
MAX_SHARED_NAMES = 1_000_000
"""Attributes of all objects whose state something else refers to: each gets its own, which the file did not pay for."""

_GETATTR = (("builtins", "getattr"), ("__builtin__", "getattr"))


class Load:
    """What is known of one load: the globals named, the objects recorded."""

    def __init__(self, builder: TensorBuilder) -> None:
        self.builder = builder
        self.globals: dict[tuple[str, str], Any] = {}
        self.nodes: list[Any] = []
        self.ordered: list[OrderedDict[Any, Any]] = []
        self.hidden_calls: list[ForeignObject] = []
        self._keys = KeyCheck()
        self.folds: dict[tuple[str, str], Fold] = {**plain_folds(self._keys), **builder.folds()}
        self.folds["collections", "OrderedDict"] = self._ordered_dict
        self.folds.update(dict.fromkeys(_GETATTR, self._nested))

    def find(self, module: str, name: str) -> Any:
        key = (module, name)
        if key in self.globals:
            return self.globals[key]
        self._check_name(key)
        found = self.builder.constant(module, name)
        self.globals[key] = found = self._new_global(module, name) if found is NOT_FOLDED else found
        return found

    def record(
        self,
        function: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None = None,
        *,
        is_new: bool = False,
    ) -> Any:
        node = object.__new__(_Node)
        node.__recipe__ = Recipe(function, args, kwargs, is_new=is_new)
        self.nodes.append(node)
        return node

    def call(self, function: ForeignGlobal, args: tuple[Any, ...]) -> Any:
        fold = function.__fold__  # type: ignore[attr-defined]
        value = NOT_FOLDED if fold is None else fold(*args)
        return self.record(function, args) if value is NOT_FOLDED else value

    def finish(self) -> None:
        """Turn what was recorded into foreign objects, which answer migrations."""
        for ordered in self.ordered:
            if any(map(_is_of_the_class, vars(ordered))):
                raise UnsafePickle("the pickle replaces a method of an OrderedDict")
        for found in self.globals.values():
            if isinstance(found, ForeignGlobal):
                _stop_recording(found)
        self._take_hidden_calls()
        copied = 0
        for node in self.nodes:
            _become_foreign(node)
            if node.__recipe__.state is not None:
                copied += len(vars(node))
                if copied > MAX_SHARED_NAMES:
                    raise TooLarge(
                        f"the objects of the pickle share states of more than {MAX_SHARED_NAMES} attributes in all"
                    )
        # Some are methods of this load, which would stay with all of it until garbage is collected.
        self.folds.clear()

    def _new_global(
        self, module: str, name: str, via: tuple[Any, tuple[Any, ...]] | None = None
    ) -> ForeignGlobal:
        load = self

        def new(cls: ForeignGlobal, *args: Any, **kwargs: Any) -> Any:
            return load.record(cls, args, kwargs or None, is_new=True)

        members = {
            "__module__": module,
            "__qualname__": name,
            "__slots__": (),
            "__new__": new,
            "__via__": via,
            "__load__": self,
            "__fold__": self.folds.get((module, name)),
        }
        return type.__new__(_RecordingGlobal, name, (), members)

    def _nested(self, *args: Any) -> Any:
        """`getattr(Outer, "Inner")`: how pickle names a nested class before protocol 4."""
        if not (len(args) == 2 and isinstance(args[0], ForeignGlobal) and type(args[1]) is str):
            return NOT_FOLDED
        outer, name = args
        key = (outer.__module__, f"{outer.__qualname__}.{name}")
        if key not in self.globals:
            self._check_name(key)
            getattr_global = next(self.globals[path] for path in _GETATTR if path in self.globals)
            self.globals[key] = self._new_global(*key, via=(getattr_global, args))
        return self.globals[key]

    def _ordered_dict(self, *args: Any) -> Any:
        if args and not (
            len(args) == 1
            and type(args[0]) is list
            and all(type(pair) in (list, tuple) for pair in args[0])
        ):
            return NOT_FOLDED
        self._keys.check(pair[0] for pairs in args for pair in pairs if pair)
        self.ordered.append(OrderedDict(*args))
        return self.ordered[-1]

    def _check_name(self, key: tuple[str, str]) -> None:
        for text in key:
            if not text or len(text) > MAX_NAME_LENGTH or not text.isprintable():
                raise UnsafePickle("the pickle names a global in a way that no pickler writes")
        if len(self.globals) == MAX_GLOBALS:
            raise TooLarge(f"the pickle names more than {MAX_GLOBALS} classes and functions")

    def _take_hidden_calls(self) -> None:
        """Find calls whose result nothing refers to, and give a state setter back to the object it was called on."""
        for index in range(len(self.nodes) - 1, -1, -1):
            # Two references: the list's, and the argument of getrefcount.
            if sys.getrefcount(self.nodes[index]) == 2:
                node = self.nodes.pop(index)
                made = node.__recipe__
                is_bare = not made.is_new and made.state_kind is None and made.items is None
                target = made.args[0] if is_bare and len(made.args) == 2 else None
                if (
                    type(target) is _Node
                    and target.__recipe__.setter is None
                    and target.__recipe__.state_kind is None
                ):
                    target.__recipe__.setter, target.__recipe__.state = made.function, made.args[1]
                    target.__recipe__.state_kind = "other"
                else:
                    _become_foreign(node)
                    self.hidden_calls.append(node)


def _is_of_the_class(name: object) -> bool:
    """Whether an attribute of an OrderedDict would stand before a method or be none that can be asked for."""
    return type(name) is not str or name.startswith("__") or hasattr(OrderedDict, name)


class _Refused:
    """A data descriptor, found before anything in the class, that lets a pickle do nothing to a global."""

    def __get__(self, found: object, owner: type | None = None) -> NoReturn:
        raise UnsafePickle("the pickle changes a class or function that it names")

    def __set__(self, found: object, value: object) -> NoReturn:
        raise UnsafePickle("the pickle changes a class or function that it names")


class _RecordingGlobal(ForeignGlobal):
    """A foreign global while it is loaded: calls are recorded, changes refused."""

    __setstate__ = append = extend = add = _Refused()
    __load__: Load

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls.__load__.call(cls, args)

    def __setattr__(cls, name: str, value: object) -> NoReturn:
        raise UnsafePickle("the pickle changes a class or function that it names")


class _Node(Recorded):
    """A foreign object while it is loaded: what is done to it is written into its recipe."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        made = self.__recipe__
        if made.state_kind is not None or state is None:
            raise UnsafePickle("the pickle sets a state twice, or none")
        made.state_kind, made.state = "other", state

    def extend(self, items: list[Any]) -> None:
        self._items(list).extend(items)

    def append(self, item: Any) -> None:
        self._items(list).append(item)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._items(dict)[key] = value

    def __call__(self, *args: Any) -> Any:
        function: Any = self
        while type(function) is _Node:
            function = function.__recipe__.function
        return function.__load__.record(self, args)

    def add(self, item: Any) -> NoReturn:
        raise UnsafePickle("the pickle adds members to what is no set")

    def _items(self, kind: type) -> Any:
        made = self.__recipe__
        if made.items is None:
            made.items = kind()
        if type(made.items) is not kind:
            raise UnsafePickle("the pickle gives an object both items and keys, which is not read")
        if made.state_kind is not None:
            raise UnsafePickle("the pickle fills an object in an order that no pickler writes")
        return made.items


def _stop_recording(found: ForeignGlobal) -> None:
    # With the metaclass of a finished global it refuses calls; without the rest it does not keep the load alive.
    type.__setattr__(found, "__class__", ForeignGlobal)
    for name in ("__new__", "__load__", "__fold__"):
        type.__delattr__(found, name)


def _become_foreign(node: Any) -> None:
    made = node.__recipe__
    attributes = _attributes_of(made)
    become(node, kind_of(made))
    if attributes is not None:
        vars(node).update(attributes)


def _attributes_of(made: Recipe) -> dict[str, Any] | None:
    """The state as attributes, where it is a dict by name or such a dict beside one for slots.

    It is let go of, unless something else in the file refers to it.
    """
    state = made.state
    if made.state_kind is None or made.setter is not None:
        return None
    # References: of the recipe, of `state`, of the argument of getrefcount.
    is_shared = sys.getrefcount(state) > 3
    if _is_names(state):
        made.state_kind = "dict"
        made.state = state if is_shared else None
        return state  # type: ignore[no-any-return]
    if (
        type(state) is tuple
        and len(state) == 2
        and (state[0] is None or _is_names(state[0]))
        and _is_names(state[1])
    ):
        plain, slots = state
        if plain is None or not plain.keys() & slots.keys():
            # References of the two: of the tuple, of the name, of the argument.
            is_shared |= sys.getrefcount(slots) > 3
            is_shared |= plain is not None and sys.getrefcount(plain) > 3
            made.state_kind = "slots"
            made.plain_names = None if plain is None else frozenset(plain)
            made.state = state if is_shared else None
            return {**(plain or {}), **slots}
    return None


def _is_names(value: object) -> bool:
    return type(value) is dict and all(type(name) is str for name in value)

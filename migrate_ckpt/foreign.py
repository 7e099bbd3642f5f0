"""Foreign objects: what a checkpoint holds of classes that are never imported.

A pickle builds such an object by instructions: call this, set that state, append these items. A foreign object is
those instructions, its recipe, in a shape that a migration can work with as with the real thing:

* with a state of names and values it answers attribute get, set and delete, and `vars()`;
* built with items it answers as a mapping or as a sequence (`migrate_ckpt.foreign_kinds`);
* `obj.__class__` names the class that the file names, with `__module__` and `__qualname__`.

Whatever else is asked of it is a `ForeignObjectError`. It is written back as the same instructions.

What it answers is what the file says. What its class adds to that, only the class could tell: attributes of the class,
properties, and what a `__setstate__` or `__setattr__` of its own makes of a name.
"""

from __future__ import annotations

import copy
import itertools
import types
from collections.abc import Callable
from typing import Any, NoReturn

from .errors import ForeignObjectError

CONTAINER_METHODS = frozenset(
    name for name in (*dir(dict), *dir(list)) if not name.startswith("__")
)

_NAMES_SHOWN = 10
_class_slot = object.__dict__["__class__"]


class ForeignGlobal(type):
    """A class or function that a file names. It is a class itself, because the pickle machinery asks for one."""

    @staticmethod
    def named(module: str, name: str) -> ForeignGlobal:
        """A global to put into a checkpoint by name, as in `recipe(obj).function = ForeignGlobal.named(...)`."""
        return type.__new__(
            ForeignGlobal, name, (), {"__module__": module, "__qualname__": name, "__slots__": ()}
        )

    def __call__(cls, *args: Any, **kwargs: Any) -> NoReturn:
        raise ForeignObjectError(
            f"{global_path(cls)} is only named in the checkpoint, not imported: it cannot be called"
        )

    def __repr__(cls) -> str:
        return f"<foreign global {global_path(cls)}>"


class Recipe:
    """How a pickle builds one foreign object.

    Attributes:
        function: What is called or instantiated: a foreign global, or the foreign object that an earlier call gave.
        args: The positional arguments.
        kwargs: The keyword arguments, None when there are none.
        is_new: Whether `function` is instantiated through `__new__` (opcode NEWOBJ), not called (REDUCE).
        state_kind: None; "dict": the state is the object's `__dict__`; "slots": so it is, and all but the names in
            `plain_names` are set one by one, as those of slots are; "other": any other value, in `state`.
        plain_names: None where a state of the kind "slots" has no part for others.
        state: Of the kind "other" the state. Of the kinds "dict" and "slots" the very state that was read, where
            something else in the file refers to it; it is what is written as long as the attributes are what they
            were. Mostly None. Edit the attributes in its place.
        items: What was appended to it (a list) or set in it (a dict), else None.
        setter: The function that sets the state (sixth item of `__reduce__`), mostly None.
        place: A number that is higher for what was made later; a copy keeps it. It orders the members of a set.
    """

    __slots__ = (
        "args",
        "function",
        "is_new",
        "items",
        "kwargs",
        "place",
        "plain_names",
        "setter",
        "state",
        "state_kind",
    )

    def __init__(
        self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None, *, is_new: bool
    ) -> None:
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.is_new = is_new
        self.state_kind: str | None = None
        self.state: Any = None
        self.plain_names: frozenset[str] | None = None
        self.items: Any = None
        self.setter: Any = None
        self.place = next(_places)

    @property
    def has_names(self) -> bool:
        """Whether the state is all that is told of it: attributes, or none at all."""
        if self.state_kind is None:
            return self.is_new and not (self.args or self.kwargs or self.items)
        return self.state_kind in ("dict", "slots")


_places = itertools.count()


def recipe(obj: ForeignObject) -> Recipe:
    """The instructions that build a foreign object; they may be edited."""
    return obj.__recipe__


def made_by(path: str, args: tuple[Any, ...] = (), *, is_new: bool) -> ForeignObject:
    """Return what a class or function gives, named by its module and name, that is not imported; without a state."""
    module, _, name = path.rpartition(".")
    made: ForeignObject = object.__new__(ForeignObject)
    object.__setattr__(
        made, "__recipe__", Recipe(ForeignGlobal.named(module, name), args, None, is_new=is_new)
    )
    return made


def global_path(cls: type) -> str:
    """Module and name of a foreign global, joined by a dot."""
    return f"{cls.__module__}.{cls.__qualname__}"


def describe(obj: ForeignObject) -> str:
    """What was called, or instantiated, to make an object."""
    function, is_result = obj.__recipe__.function, False
    while isinstance(function, ForeignObject):
        function, is_result = function.__recipe__.function, True
    path = global_path(function)
    return f"a call of what {path} gave" if is_result else path


def _names_of(obj: ForeignObject) -> str:
    """The first names of its attributes, whatever characters these have."""
    names = [
        name if name.isprintable() else ascii(name)
        for name in itertools.islice(vars(obj), _NAMES_SHOWN)
    ]
    more = len(vars(obj)) - len(names)
    return (", ".join(name[:80] for name in names) or "none") + (
        f" and {more} more" if more else ""
    )


def cannot_answer(obj: ForeignObject, question: str) -> ForeignObjectError:
    """The error for what only the class of an object could answer."""
    return ForeignObjectError(
        f"{describe(obj)} is a foreign object, kept without importing its class: it cannot answer {question}. "
        "Edit its attributes, items or recipe, replace it, or drop it"
    )


def _unanswerable(question: str) -> Any:
    def refuse(self: ForeignObject, *args: Any) -> NoReturn:
        raise cannot_answer(self, question)

    return refuse


class _BeforeAttributes:
    """A method that is found before an attribute of its name, which a file may give to an object."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __get__(self, obj: object, owner: type | None = None) -> Any:
        return self._function if obj is None else types.MethodType(self._function, obj)

    def __set__(self, obj: ForeignObject, value: object) -> NoReturn:
        raise cannot_answer(obj, f"the setting of {self._function.__name__!r}")


class Recorded:
    """The layout that foreign objects share with what a reader records, so that one can become the other."""

    __slots__ = ("__dict__", "__recipe__", "__weakref__")
    __recipe__: Recipe


class ForeignObject(Recorded):
    """An object of a class that is not imported. See the module for what it answers."""

    __slots__ = ()

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        function = self.__recipe__.function
        return function if isinstance(function, ForeignGlobal) else type(self)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        if not self.__recipe__.has_names or name in type(self).__methods__(self):
            raise cannot_answer(self, f"for its attribute {name!r}")
        raise AttributeError(
            f"the foreign {describe(self)} holds no attribute {name!r}; it holds {_names_of(self)}"
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if not self.__recipe__.has_names:
            raise cannot_answer(self, f"the setting of {name!r}")
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        if name not in vars(self):
            self.__getattr__(name)
        object.__delattr__(self, name)

    # Like all that is no answer of the object's own it has a name that no file can give to an attribute.
    def __methods__(self) -> frozenset[str]:
        """Names that its class has without a doubt, or may have."""
        # An object without a state may be a dict or a list that is empty.
        return CONTAINER_METHODS if self.__recipe__.state_kind is None else frozenset()

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if other is None:
            return False
        return bool(_unanswerable("==")(self))

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        parts = [f"<foreign {describe(self)}"]
        if self.__recipe__.args:
            parts.append(f"{len(self.__recipe__.args)} arguments")
        if vars(self):
            parts.append(f"attributes {_names_of(self)}")
        if self.__recipe__.items is not None:
            parts.append(f"{len(self.__recipe__.items)} items")
        return "; ".join(parts) + ">"

    __array__ = _unanswerable("for an array")
    __str__ = _unanswerable("str(); repr() shows what is known of it")
    __bool__ = _unanswerable("whether it is true")
    __int__ = _unanswerable("int()")
    __float__ = _unanswerable("float()")
    __index__ = _unanswerable("for an index")
    __call__ = _unanswerable("a call")
    __iter__ = _unanswerable("for its items")
    __len__ = _unanswerable("len()")
    __getitem__ = _unanswerable("for an item")
    __setitem__ = _unanswerable("the setting of an item")
    __delitem__ = _unanswerable("the deletion of an item")
    __contains__ = _unanswerable("`in`")
    __lt__ = _unanswerable("<")
    __gt__ = _unanswerable(">")
    __le__ = _unanswerable("<=")
    __ge__ = _unanswerable(">=")
    __reduce_ex__ = _unanswerable("pickle; `write_checkpoint` can write it")

    def __copy__(self) -> ForeignObject:
        return _duplicate(self, lambda value: value)

    @_BeforeAttributes
    def __deepcopy__(self, memo: dict[int, Any]) -> ForeignObject:
        return _duplicate(self, lambda value: copy.deepcopy(value, memo), memo)


def _duplicate(
    obj: ForeignObject, copied: Any, memo: dict[int, Any] | None = None
) -> ForeignObject:
    old = obj.__recipe__
    new = Recipe(old.function, (), None, is_new=old.is_new)
    new.place = old.place
    twin: ForeignObject = object.__new__(type(obj))
    object.__setattr__(twin, "__recipe__", new)
    if memo is not None:
        memo[id(obj)] = twin
    new.function, new.args, new.kwargs = copied(old.function), copied(old.args), copied(old.kwargs)
    new.state_kind, new.state, new.plain_names = old.state_kind, copied(old.state), old.plain_names
    new.setter = copied(old.setter)
    new.items = copied(copy.copy(old.items))
    vars(twin).update(copied(dict(vars(obj))))
    return twin


def become(obj: Recorded, cls: type[ForeignObject]) -> None:
    """Give an object that was recorded while it was read the class that answers migrations."""
    _class_slot.__set__(obj, cls)

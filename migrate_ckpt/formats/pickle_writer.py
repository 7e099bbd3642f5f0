"""Writes a pickle with foreign objects in it, without importing what they name.

CPython's C pickler does the work. It writes a global by importing its module and looking for the very object, so
each foreign global, storage and tensor is first written as a global of a module that exists only for this purpose and
whose name is random. Afterwards these names are replaced in the bytes by what makes the true object. That and a global
both push one object, so memo and stack stay right; and since nobody can know the random name, none of the data can look
like it. As many replacements as placeholders, or it is an error.
"""

from __future__ import annotations

import _pickle
import copyreg
import io
import pickle
import re
import secrets
import struct
import sys
import types
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

from migrate_ckpt.errors import UnwritableCheckpoint
from migrate_ckpt.foreign import (
    ForeignGlobal,
    ForeignMapping,
    ForeignObject,
    ForeignSequence,
)
from migrate_ckpt.formats.opcodes import PlainTensor, push, text
from migrate_ckpt.formats.shadows import MAX_DEPTH
from migrate_ckpt.formats.storages import StorageHandle

FRAMES_PER_LEVEL = 12

_SET = re.compile(rb"c(__builtin__|builtins)\n(frozen)?set\n")
_MIGRATIONS_PREFIX = "_migrate_ckpt_"

Written: TypeAlias = "ForeignGlobal | StorageHandle | PlainTensor"


class TensorReducer(Protocol):
    """Knows how torch's values are pickled."""

    def reducers(self) -> dict[type, Callable[[Any], Any]]:
        """By exact type: what `__reduce_ex__` would give, or what to write in place of the value."""
        ...

    def written_as(self, handle: StorageHandle) -> StorageHandle:
        """Note a storage that a foreign object refers to; gives the one to write."""
        ...

    def reducer_of(self, obj: object) -> Callable[[Any], Any] | None:
        """The same for a type that is not listed, such as a subclass; None where the usual way is right."""
        ...


def write_pickle(value: Any, reducer: TensorReducer, protocol: int = 2) -> bytes:
    """The pickle of a value. Protocols 2 to 5.

    Raises:
        UnwritableCheckpoint: The value holds what cannot be pickled.
    """
    try:
        data = _write_by_placeholders(value, reducer, protocol) if protocol < 4 else None
        # The C pickler writes a set in the order of its hashes, which differs from process to process. The other one
        # is asked before it does; a file with text that looks like a set costs only the time.
        if data is None or _SET.search(data):
            data = _write_in_python(value, reducer, protocol)
        return data
    except (pickle.PicklingError, TypeError, AttributeError, RecursionError, ValueError) as error:
        raise UnwritableCheckpoint(f"the migrated checkpoint cannot be written: {error}") from error


def _write_by_placeholders(value: Any, reducer: TensorReducer, protocol: int) -> bytes:
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, protocol, reducer)
    try:
        pickler.dump(value)
    finally:
        pickler.placeholders.withdraw()
    data = buffer.getvalue()
    if pickler.placeholders.is_empty:
        return data
    return pickler.placeholders.replace(data, free_memo=len(pickler.memo.copy()))


def _write_in_python(value: Any, reducer: TensorReducer, protocol: int) -> bytes:
    buffer = io.BytesIO()
    limit = sys.getrecursionlimit()
    # It takes some frames for each level of nesting, and more levels are read than Python's own limit has room for.
    sys.setrecursionlimit(max(limit, FRAMES_PER_LEVEL * MAX_DEPTH))
    try:
        _PythonPickler(buffer, protocol, reducer).dump(value)
    finally:
        sys.setrecursionlimit(limit)
    return buffer.getvalue()


class _Reduces:
    """What both picklers answer when they meet something that is not plain."""

    def __init__(self, buffer: io.BytesIO, protocol: int, reducer: TensorReducer) -> None:
        super().__init__(buffer, protocol)  # type: ignore[call-arg]
        self._reducer = reducer
        self._reducers: dict[type, Callable[[Any], Any]] = {
            ForeignGlobal: _reduce_global,
            ForeignObject: _reduce,
            ForeignMapping: _reduce,
            ForeignSequence: _reduce,
            StorageHandle: reducer.written_as,
            types.FunctionType: _refuse_unimportable,
            type: _refuse_unimportable,
            **reducer.reducers(),
        }

    def reducer_override(self, obj: Any) -> Any:
        reduce = self._reducers.get(type(obj)) or self._reducer.reducer_of(obj)
        if reduce is None:
            return _refuse_unimportable(type(obj))
        reduced = reduce(obj)
        return self.placeholder(obj, reduced) if type(reduced) in _WRITTEN else reduced

    def placeholder(self, obj: Any, written: Written) -> str:
        """A name for `obj`, for the pickler to write it as a global, so that `written` comes in its place."""
        raise NotImplementedError


class _Pickler(_Reduces, _pickle.Pickler):
    """The C pickler, for protocols 2 and 3, where a global is one opcode with two lines of text."""

    def __init__(self, buffer: io.BytesIO, protocol: int, reducer: TensorReducer) -> None:
        self.placeholders = _Placeholders()
        super().__init__(buffer, protocol, reducer)

    def placeholder(self, obj: Any, written: Written) -> str:
        return self.placeholders.add(obj, written)


# The pickler in Python has no type stubs, for its name says that it is private; it has been there since Python 3.0.
_PurePickler: Any = pickle._Pickler


class _PythonPickler(_Reduces, _PurePickler):  # type: ignore[misc]
    """The pickler in Python, for protocols 4 and 5, in which torch saves only when asked to.

    There a global is two strings that share the memo with all others, inside frames of known length: no place for
    a replacement. This one writes the right opcodes at once, at a quarter of the speed. It also asks for sets.
    """

    def __init__(self, buffer: io.BytesIO, protocol: int, reducer: TensorReducer) -> None:
        super().__init__(buffer, protocol, reducer)
        self._reducers |= {set: self._reduce_set, frozenset: self._reduce_set}

    def placeholder(self, obj: Any, written: Written) -> str:
        self._written = written
        return ""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if name == "":
            self.write(push(self._written, _stack_global if self.proto >= 4 else _plain_global))
            self.memoize(obj)
        else:
            super().save_global(obj, name)

    def _reduce_set(self, members: Any) -> tuple[Any, ...]:
        """The members in the order of their own pickles, which is the same everywhere."""
        return type(members), (
            sorted(members, key=lambda member: _write_in_python(member, self._reducer, 2)),
        )


def _reduce_global(found: ForeignGlobal) -> Any:
    return found.__dict__.get("__via__") or found


def _reduce(obj: ForeignObject) -> tuple[Any, ...]:
    """The recipe of a foreign object in the form that `__reduce_ex__` gives."""
    made = obj.__recipe__
    function, args = made.function, made.args
    if made.kwargs:
        function, args = copyreg.__newobj_ex__, (made.function, made.args, made.kwargs)  # type: ignore[attr-defined]
    elif made.is_new:
        function, args = copyreg.__newobj__, (made.function, *made.args)  # type: ignore[attr-defined]
    items = made.items
    listed = iter(items) if type(items) is list else None
    pairs = iter(items.items()) if type(items) is dict else None
    reduced = (function, args, _state(obj), listed, pairs)
    return reduced if made.setter is None else (*reduced, made.setter)


def _state(obj: ForeignObject) -> Any:
    made, attributes = obj.__recipe__, vars(obj)
    if made.state_kind == "slots":
        slots = {name: attributes[name] for name in made.slot_names or () if name in attributes}
        plain = {name: value for name, value in attributes.items() if name not in slots}
        return (plain or None, slots)
    if made.state_kind == "dict" or attributes:
        return attributes
    return made.state


def _refuse_unimportable(obj: Any) -> Any:
    """A class or function of a migration file could be imported by nobody who loads the checkpoint."""
    if str(getattr(obj, "__module__", "")).startswith(_MIGRATIONS_PREFIX):
        raise UnwritableCheckpoint(
            f"the migrated checkpoint holds {obj.__qualname__}, which is defined in the folder of migrations: whoever "
            "loads the file could not import it. Put plain values into the checkpoint"
        )
    return NotImplemented


class _Placeholders:
    """Globals of a module with a random name, and what shall stand in their place."""

    def __init__(self) -> None:
        self._token = f"_{secrets.token_hex(16)}_"
        self._module = types.ModuleType(f"m{self._token}")
        self._written: list[Written] = []
        self._renamed: list[tuple[Any, str | None]] = []

    @property
    def is_empty(self) -> bool:
        return not self._written

    def add(self, obj: Any, written: Written) -> str:
        """Make `obj` a global of the module; gives its name there."""
        # Padded, so that no name is the beginning of another.
        name = f"{self._token}{len(self._written):010d}"
        if not self._written:
            sys.modules[self._module.__name__] = self._module
        setattr(self._module, name, obj)
        self._written.append(written)
        self._rename(obj)
        return name

    def withdraw(self) -> None:
        """Take the module away again, and its name from the objects."""
        sys.modules.pop(self._module.__name__, None)
        vars(self._module).clear()
        for obj, module in self._renamed:
            if module is None:
                object.__delattr__(obj, "__module__")
            else:
                type.__setattr__(obj, "__module__", module)

    def replace(self, data: bytes, *, free_memo: int) -> bytes:
        """The pickle with the true opcodes in place of each placeholder. Memo slots from `free_memo` on are unused."""
        token = self._token.encode()
        pattern = rb"cm" + token + rb"\n" + token + rb"(\d{10})\n"
        write_global = _MemoisedGlobals(free_memo)
        data, replaced = re.subn(
            pattern, lambda found: push(self._written[int(found[1])], write_global), data
        )
        if replaced != len(self._written) or token in data:
            raise UnwritableCheckpoint("the pickler wrote a foreign object in an unexpected way")
        return data

    def _rename(self, obj: Any) -> None:
        if isinstance(obj, type):
            self._renamed.append((obj, obj.__module__))
            type.__setattr__(obj, "__module__", self._module.__name__)
        else:
            object.__setattr__(obj, "__module__", self._module.__name__)
            self._renamed.append((obj, None))


class _MemoisedGlobals:
    """Writes a global the first time by its name, and from then on out of the memo."""

    def __init__(self, free_memo: int) -> None:
        self._next = free_memo
        self._known: dict[tuple[str, str], bytes] = {}

    def __call__(self, module: str, name: str) -> bytes:
        known = self._known.get((module, name))
        if known is not None:
            return known
        slot = struct.pack("<I", self._next)
        self._next += 1
        self._known[module, name] = pickle.LONG_BINGET + slot
        return _plain_global(module, name) + pickle.LONG_BINPUT + slot


def _plain_global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _stack_global(module: str, name: str) -> bytes:
    return text(module) + text(name) + pickle.STACK_GLOBAL


_WRITTEN = frozenset((ForeignGlobal, StorageHandle, PlainTensor))

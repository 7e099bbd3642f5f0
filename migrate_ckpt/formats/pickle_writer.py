"""Writes a pickle with foreign objects in it, without importing what they name.

CPython's C pickler does the work. It writes a global by importing its module and looking for the very object, so
each foreign global and each storage is first written as a global of a module that exists only for this purpose and
whose name is random. Afterwards these names are replaced in the bytes: by the real name, or by the persistent id
of the storage. A global and a persistent id both push one object, so memo and stack stay right; and since nobody
can know the random name, none of the data can look like it. As many replacements as placeholders, or it is an error.
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
    global_path,
)
from migrate_ckpt.formats.storages import StorageHandle

_MIGRATIONS_PREFIX = "_migrate_ckpt_"

Written: TypeAlias = "ForeignGlobal | StorageHandle"


class TensorReducer(Protocol):
    """Knows how torch's values are pickled."""

    def reducers(self) -> dict[type, Callable[[Any], Any]]:
        """By exact type: what `__reduce_ex__` would give, or a StorageHandle to write in place of the value."""
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
    write = _write_by_placeholders if protocol < 4 else _write_in_python
    try:
        return write(value, reducer, protocol)
    except (pickle.PicklingError, TypeError, AttributeError, RecursionError, ValueError) as error:
        raise UnwritableCheckpoint(f"the migrated checkpoint cannot be written: {error}") from error


def _write_by_placeholders(value: Any, reducer: TensorReducer, protocol: int) -> bytes:
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, protocol, reducer)
    try:
        pickler.dump(value)
    finally:
        pickler.placeholders.withdraw()
    return pickler.placeholders.replace(buffer.getvalue())


def _write_in_python(value: Any, reducer: TensorReducer, protocol: int) -> bytes:
    buffer = io.BytesIO()
    _PythonPickler(buffer, protocol, reducer).dump(value)
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
        if isinstance(reduced, (StorageHandle, ForeignGlobal)):
            return self.placeholder(obj, reduced)
        return reduced

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
    a replacement. This one writes the right opcodes at once, at a quarter of the speed.
    """

    def placeholder(self, obj: Any, written: Written) -> str:
        self._written = written
        return ""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if name == "":
            self.write(_opcodes(self._written, _stack_global))
            self.memoize(obj)
        else:
            super().save_global(obj, name)


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
    """Globals of modules with random names, and what shall stand in their place."""

    def __init__(self) -> None:
        self._token = f"_{secrets.token_hex(16)}_"
        self._written: list[Written] = []
        self._restore: list[tuple[Any, str]] = []

    def add(self, obj: Any, written: Written) -> str:
        """Make `obj` a global of a module of its own; gives its name there."""
        name = self._name(len(self._written))
        module = types.ModuleType(f"m{name}")
        setattr(module, name, obj)
        true_module = obj.__module__
        _set_module(obj, module.__name__)
        sys.modules[module.__name__] = module
        self._restore.append((obj, true_module))
        self._written.append(written)
        return name

    def withdraw(self) -> None:
        """Take the modules away again."""
        for index, (obj, module) in enumerate(self._restore):
            sys.modules.pop(f"m{self._name(index)}", None)
            _set_module(obj, module)

    def replace(self, data: bytes) -> bytes:
        """The pickle with the real opcodes in place of each placeholder."""
        if not self._written:
            return data
        token = self._token.encode()
        pattern = rb"cm" + token + rb"\d{10}\n" + token + rb"(\d{10})\n"
        data, replaced = re.subn(
            pattern, lambda found: _opcodes(self._written[int(found[1])], _global), data
        )
        if replaced != len(self._written) or token in data:
            raise UnwritableCheckpoint("the pickler wrote a foreign object in an unexpected way")
        return data

    def _name(self, index: int) -> str:
        # Padded, so that no name is the beginning of another.
        return f"{self._token}{index:010d}"


def _set_module(obj: Any, module: str) -> None:
    set_attribute = type.__setattr__ if isinstance(obj, type) else object.__setattr__
    set_attribute(obj, "__module__", module)


def _opcodes(written: Written, write_global: Callable[[str, str], bytes]) -> bytes:
    if isinstance(written, ForeignGlobal):
        return write_global(written.__module__, written.__qualname__)
    numel = pickle.dumps(written.numel, protocol=2)[2:-1]
    module, _, name = global_path(written.type).rpartition(".")
    text = (
        _text("storage"),
        write_global(module, name),
        _text(written.key),
        _text(written.location),
    )
    return b"".join((pickle.MARK, *text, numel, pickle.TUPLE, pickle.BINPERSID))


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _stack_global(module: str, name: str) -> bytes:
    return _text(module) + _text(name) + pickle.STACK_GLOBAL


def _text(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogatepass")
    return pickle.BINUNICODE + struct.pack("<I", len(raw)) + raw

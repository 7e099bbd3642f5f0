"""Writes a pickle with foreign objects in it, without importing what they name.

CPython's C pickler does the work. It writes a global by importing its module and looking for the very object, so
each foreign global and storage is first written as a global of a module that exists only for this purpose and whose
names are random. Afterwards these names are replaced in the bytes by what makes the true object. That and a global
both push one object, so memo and stack stay right; and since nobody can know the random name, none of the data can look
like it. As many replacements as placeholders, or it is an error.

A plain tensor is the call of the function that rebuilds it, with one long number that holds the same random bytes: the
number and the call are replaced by the true arguments and the call.
"""

from __future__ import annotations

import _pickle
import copyreg
import io
import pickle
import secrets
import struct
import sys
import types
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeAlias

from migrate_ckpt.errors import UnwritableCheckpoint
from migrate_ckpt.foreign import (
    ForeignGlobal,
    ForeignMapping,
    ForeignObject,
    ForeignSequence,
)
from migrate_ckpt.formats.opcodes import PlainTensor, call_around_key, function_of, push, text
from migrate_ckpt.formats.shadows import MAX_DEPTH
from migrate_ckpt.formats.storages import StorageHandle

FRAMES_PER_LEVEL = 12

_MIGRATIONS_PREFIX = "_migrate_ckpt_"

# Of the index of a placeholder: in a name, and in a number.
_INDEX_DIGITS = 10
_INDEX_BYTES = 4
_TOKEN_BYTES = 32
_NUMBER_START = pickle.LONG1 + bytes([_INDEX_BYTES + _TOKEN_BYTES])

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
        return _write_in_python(value, reducer, protocol) if data is None else data
    except (pickle.PicklingError, TypeError, AttributeError, RecursionError, ValueError) as error:
        raise UnwritableCheckpoint(f"the migrated checkpoint cannot be written: {error}") from error


def _write_by_placeholders(value: Any, reducer: TensorReducer, protocol: int) -> bytes | None:
    """None where the value holds a set.

    The C pickler writes its members in the order of their hashes, which differs from process to process.
    """
    output = _Output()
    pickler = _Pickler(output, protocol, reducer)
    try:
        pickler.dump(value)
    finally:
        pickler.placeholders.withdraw()
    if pickler.has_set:
        return None
    data = output.take()
    if pickler.placeholders.is_empty:
        return data
    return pickler.placeholders.replace(data, free_memo=_next_index(pickler, output))


class _Output:
    """Takes what the C pickler writes, which is nearly always all at once, without a copy of it."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes | memoryview) -> None:
        # A long text comes as a view of memory that is good for this call only. Bytes are not copied by this.
        self._parts.append(bytes(data))

    def take(self) -> bytes:
        """All that was written since the last time."""
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        return data


def _next_index(pickler: _Pickler, output: _Output) -> int:
    """The place in the memo that the pickler gives next. It does not say how many there are but in a copy of all."""
    pickler.dump([])
    put = output.take().partition(pickle.EMPTY_LIST)[2]
    return int.from_bytes(put[1:-1], "little")


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

    def __init__(self, output: io.BytesIO | _Output, protocol: int, reducer: TensorReducer) -> None:
        super().__init__(output, protocol)  # type: ignore[call-arg]
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

    def placeholder(self, obj: Any, written: Written) -> Any:
        """What to say to the pickler about `obj`, so that `written` comes in its place."""
        raise NotImplementedError


class _Pickler(_Reduces, _pickle.Pickler):
    """The C pickler, for protocols 2 and 3, where a global is one opcode with two lines of text."""

    def __init__(self, output: io.BytesIO | _Output, protocol: int, reducer: TensorReducer) -> None:
        self.placeholders = _Placeholders()
        self._classes: set[type] = set()
        super().__init__(output, protocol, reducer)
        # No method of its own: a pickler that holds itself stays with all it wrote until garbage is collected.
        self._reducers[type] = partial(_reduce_class, self._classes)

    @property
    def has_set(self) -> bool:
        """Whether there was a set, which is the call of its class."""
        return not self._classes.isdisjoint((set, frozenset))

    def placeholder(self, obj: Any, written: Written) -> Any:
        if type(written) is PlainTensor:
            return self.placeholders.add_tensor(written)
        return self.placeholders.add(obj, written)


# The pickler in Python has no type stubs, for its name says that it is private; it has been there since Python 3.0.
_PurePickler: Any = pickle._Pickler


class _PythonPickler(_Reduces, _PurePickler):  # type: ignore[misc]
    """The pickler in Python, for protocols 4 and 5, in which torch saves only when asked to.

    There a global is two strings that share the memo with all others, inside frames of known length: no place for
    a replacement. This one writes the right opcodes at once, at a quarter of the speed. It also asks for sets.
    """

    def __init__(self, output: io.BytesIO | _Output, protocol: int, reducer: TensorReducer) -> None:
        super().__init__(output, protocol, reducer)
        self._reducers |= dict.fromkeys((set, frozenset), partial(_reduce_set, reducer))

    def placeholder(self, obj: Any, written: Written) -> str:
        self._written = written
        return ""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if name == "":
            self.write(push(self._written, _stack_global if self.proto >= 4 else _plain_global))
            self.memoize(obj)
        else:
            super().save_global(obj, name)


def _reduce_class(classes: set[type], found: type) -> Any:
    """Note a class that is asked for, and write it as any other."""
    classes.add(found)
    return _refuse_unimportable(found)


def _reduce_set(reducer: TensorReducer, members: Any) -> tuple[Any, ...]:
    """The members in the order of their own pickles, which is the same everywhere."""
    return type(members), (
        sorted(members, key=lambda member: _write_in_python(member, reducer, 2)),
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
    """Globals of a module and numbers in a call, all with random bytes in them, and what shall stand in their place."""

    def __init__(self) -> None:
        # Text, so that it can be in a name, and below 128, so that a number of it is positive.
        self._token = secrets.token_hex(_TOKEN_BYTES // 2).encode()
        self._number = int.from_bytes(self._token, "little") << 8 * _INDEX_BYTES
        self._module_name = f"m{secrets.token_hex(16)}"
        self._module = types.ModuleType(self._module_name)
        self._written: list[Written] = []
        self._renamed: list[tuple[Any, str | None]] = []
        self._functions: dict[tuple[str, str], ForeignGlobal] = {}

    @property
    def is_empty(self) -> bool:
        return not self._written

    def add(self, obj: Any, written: Written) -> str:
        """Make `obj` a global of the module; gives its name there."""
        name = f"{self._token.decode()}{len(self._written):0{_INDEX_DIGITS}d}"
        if not self._renamed:
            sys.modules[self._module_name] = self._module
        setattr(self._module, name, obj)
        self._written.append(written)
        self._rename(obj)
        return name

    def add_tensor(self, tensor: PlainTensor) -> tuple[ForeignGlobal, tuple[int]]:
        """What is to be called, with which arguments, in place of the tensor."""
        path = function_of(tensor)
        if path not in self._functions:
            self._functions[path] = ForeignGlobal.named(*path)
        self._written.append(tensor)
        return self._functions[path], (self._number + len(self._written) - 1,)

    def withdraw(self) -> None:
        """Take the module away again, and its name from the objects."""
        sys.modules.pop(self._module_name, None)
        vars(self._module).clear()
        for obj, module in self._renamed:
            if module is None:
                object.__delattr__(obj, "__module__")
            else:
                type.__setattr__(obj, "__module__", module)

    def replace(self, data: bytes, *, free_memo: int) -> bytes:
        """The pickle with the true opcodes in place of each placeholder. Memo slots from `free_memo` on are unused."""
        before, *rest = data.split(self._token)
        if len(rest) != len(self._written):
            raise _unexpected()
        globals = _MemoisedGlobals(free_memo)
        calls = _Calls(globals)
        name_start = pickle.GLOBAL + self._module_name.encode() + b"\n"
        parts: list[bytes] = []
        for after in rest:
            if before.endswith(name_start):
                start, end = len(before) - len(name_start), _INDEX_DIGITS + 1
                written = self._written[int(after[:_INDEX_DIGITS])]
                opcodes = push(written, globals)
            else:
                start, end = len(before) - len(_NUMBER_START) - _INDEX_BYTES, _length_of_call(after)
                tensor = self._written[int.from_bytes(before[-_INDEX_BYTES:], "little")]
                if not (
                    isinstance(tensor, PlainTensor) and before.startswith(_NUMBER_START, start)
                ):
                    raise _unexpected()
                opcodes = calls.opcodes(tensor)
            parts += before[:start], opcodes
            before = after[end:]
        parts.append(before)
        return b"".join(parts)

    def _rename(self, obj: Any) -> None:
        if isinstance(obj, type):
            self._renamed.append((obj, obj.__module__))
            type.__setattr__(obj, "__module__", self._module_name)
        else:
            object.__setattr__(obj, "__module__", self._module_name)
            self._renamed.append((obj, None))


class _MemoisedGlobals:
    """Writes a global the first time by its name, and from then on out of the memo."""

    def __init__(self, free_memo: int) -> None:
        self._next = free_memo
        self._known: dict[tuple[str, str], bytes] = {}

    def __len__(self) -> int:
        return len(self._known)

    def __call__(self, module: str, name: str) -> bytes:
        known = self._known.get((module, name))
        if known is not None:
            return known
        slot = struct.pack("<I", self._next)
        self._next += 1
        self._known[module, name] = pickle.LONG_BINGET + slot
        return _plain_global(module, name) + pickle.LONG_BINPUT + slot


class _Calls:
    """Writes the calls of plain tensors, of which many differ in nothing but the key of their storage."""

    def __init__(self, globals: _MemoisedGlobals) -> None:
        self._globals = globals
        self._known: dict[tuple[Any, ...], tuple[bytes, bytes]] = {}

    def opcodes(self, tensor: PlainTensor) -> bytes:
        storage, *rest = tensor
        like = (storage.type, storage.location, storage.numel, *rest)
        around = self._known.get(like)
        if around is None:
            count = len(self._globals)
            around = call_around_key(tensor, self._globals)
            # Where a global is written by its name, it is written differently the next time.
            if len(self._globals) == count:
                self._known[like] = around
        before, after = around
        return before + text(storage.key) + after


def _unexpected() -> UnwritableCheckpoint:
    return UnwritableCheckpoint("the pickler wrote a foreign object in an unexpected way")


def _length_of_call(opcodes: bytes) -> int:
    """Length of the opcodes that make a tuple of the number before them, note it, and call."""
    end = {pickle.BINPUT: 4, pickle.LONG_BINPUT: 7}.get(opcodes[1:2], 0)
    if not (opcodes[:1] == pickle.TUPLE1 and opcodes[end - 1 : end] == pickle.REDUCE):
        raise _unexpected()
    return end


def _plain_global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _stack_global(module: str, name: str) -> bytes:
    return text(module) + text(name) + pickle.STACK_GLOBAL


_WRITTEN = frozenset((ForeignGlobal, StorageHandle, PlainTensor))

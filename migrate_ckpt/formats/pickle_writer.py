"""Writes a pickle with foreign objects in it, without importing what they name.

CPython's C pickler does the work, with placeholders for what it could write only by importing it
(`migrate_ckpt.formats.placeholders`). For what it cannot do there is the pickler in Python.
"""

from __future__ import annotations

import _pickle
import copyreg
import io
import pickle
import sys
import threading
import types
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from migrate_ckpt.errors import UnwritableCheckpoint
from migrate_ckpt.foreign import ForeignGlobal, ForeignObject, recipe
from migrate_ckpt.foreign_kinds import KINDS, UNHASHABLE_KINDS
from migrate_ckpt.formats.opcodes import (
    WRITTEN_TYPES,
    PlainTensor,
    Written,
    plain_global,
    push,
    stack_global,
)
from migrate_ckpt.formats.placeholders import Placeholders
from migrate_ckpt.formats.shadows import MAX_DEPTH
from migrate_ckpt.formats.storages import StorageHandle

FRAMES_PER_LEVEL = 12

_MIGRATIONS_PREFIX = "_migrate_ckpt_"


# Foreign globals have the names of placeholders while a pickle is written, and copies of a checkpoint share them.
_one_at_a_time = threading.RLock()


class _NeedsProtocol4(Exception):
    """The value holds what only protocol 4 can say without an import."""


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

    In place of 2 and 3 it is 4 where the value holds what these cannot say without an import: a nested class by its
    name, or keyword arguments of `__new__`.

    Raises:
        UnwritableCheckpoint: The value holds what cannot be pickled.
    """
    try:
        with _one_at_a_time:
            data = _write_by_placeholders(value, reducer, protocol) if protocol < 4 else None
            return _write_in_python(value, reducer, protocol) if data is None else data
    except _NeedsProtocol4:
        return write_pickle(value, reducer, 4)
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
            ForeignGlobal: partial(_reduce_global, protocol),
            **dict.fromkeys(KINDS, partial(_reduce, protocol)),
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
        return self.placeholder(obj, reduced) if type(reduced) in WRITTEN_TYPES else reduced

    def placeholder(self, obj: Any, written: Written) -> Any:
        """What to say to the pickler about `obj`, so that `written` comes in its place."""
        raise NotImplementedError


class _Pickler(_Reduces, _pickle.Pickler):
    """The C pickler, for protocols 2 and 3, where a global is one opcode with two lines of text."""

    def __init__(self, output: io.BytesIO | _Output, protocol: int, reducer: TensorReducer) -> None:
        self.placeholders = Placeholders()
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
        order = partial(_order_of, reducer, protocol)
        self._reducers |= dict.fromkeys((set, frozenset), partial(_reduce_set, order))

    def placeholder(self, obj: Any, written: Written) -> str:
        self._written = written
        return ""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if name == "":
            self.write(push(self._written, stack_global if self.proto >= 4 else plain_global))
            self.memoize(obj)
        else:
            super().save_global(obj, name)


def _reduce_class(classes: set[type], found: type) -> Any:
    """Note a class that is asked for, and write it as any other."""
    classes.add(found)
    return _refuse_unimportable(found)


def _reduce_set(order: Callable[[Any], Any], members: Any) -> tuple[Any, ...]:
    """The members in an order that is the same everywhere."""
    return type(members), (sorted(members, key=order),)


def _order_of(reducer: TensorReducer, protocol: int, member: Any) -> tuple[Any, ...]:
    """What a member of a set is sorted by: its content, and an object, which may lead back to the set, by its place.

    Of what can be hashed nothing else leads back: tuples and frozen sets are made after what they hold.
    """
    if isinstance(member, ForeignObject):
        if isinstance(member, UNHASHABLE_KINDS):
            raise UnwritableCheckpoint(f"a set holds {member!r}, and nobody could load that")
        return 2, recipe(member).place
    if type(member) in (tuple, frozenset):
        parts = [_order_of(reducer, protocol, part) for part in member]
        return 1, type(member).__name__, parts if type(member) is tuple else sorted(parts)
    return 0, _write_in_python(member, reducer, protocol)


def _reduce_global(protocol: int, found: ForeignGlobal) -> Any:
    via = found.__dict__.get("__via__")
    if via is None and protocol < 4 and "." in found.__qualname__:
        raise _NeedsProtocol4
    return via or found


def _reduce(protocol: int, obj: ForeignObject) -> tuple[Any, ...]:
    """The recipe of a foreign object in the form that `__reduce_ex__` gives."""
    made = obj.__recipe__
    function, args = made.function, made.args
    if made.kwargs:
        if protocol < 4:
            raise _NeedsProtocol4
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
        names = made.plain_names or ()
        plain = {name: value for name, value in attributes.items() if name in names}
        # What is new, too: these are set one by one, in a slot or beside the slots.
        slots = {name: value for name, value in attributes.items() if name not in plain}
        is_as_read = made.state is not None and all(map(_is_same, made.state, (plain, slots)))
        return made.state if is_as_read else (None if made.plain_names is None else plain, slots)
    if made.state_kind == "dict":
        is_as_read = made.state is not None and _is_same(made.state, attributes)
        return made.state if is_as_read else attributes
    return (None, attributes) if made.state_kind is None and attributes else made.state


def _is_same(read: dict[str, Any] | None, held: dict[str, Any]) -> bool:
    """Whether these are the very attributes that were read, in their order."""
    pairs = zip((read or {}).items(), held.items(), strict=False)
    return len(read or {}) == len(held) and all(
        one == other and was is value for (one, was), (other, value) in pairs
    )


def _refuse_unimportable(obj: Any) -> Any:
    """A class or function of a migration file could be imported by nobody who loads the checkpoint."""
    if str(getattr(obj, "__module__", "")).startswith(_MIGRATIONS_PREFIX):
        raise UnwritableCheckpoint(
            f"the migrated checkpoint holds {obj.__qualname__}, which is defined in the folder of migrations: whoever "
            "loads the file could not import it. Put plain values into the checkpoint"
        )
    return NotImplemented

"""Placeholders: what the C pickler is told to write where a foreign global, a storage or a plain tensor belongs.

It writes a global by importing its module and looking for the very object, so each foreign global and storage is first
written as a global of a module that exists only for this purpose and whose names are random. Afterwards these names
are replaced in the bytes by what makes the true object. That and a global both push one object, so memo and stack stay
right; and since nobody can know the random name, none of the data can look like it. As many replacements as
placeholders, or it is an error.

A plain tensor is the call of the function that rebuilds it, with one long number that holds the same random bytes: the
number and the call are replaced by the true arguments and the call.
"""

from __future__ import annotations

import pickle
import secrets
import struct
import sys
import types
from typing import Any

from migrate_ckpt.errors import UnwritableCheckpoint
from migrate_ckpt.foreign import ForeignGlobal
from migrate_ckpt.formats.opcodes import (
    PlainTensor,
    Written,
    call_around_key,
    function_of,
    plain_global,
    push,
    text,
)

# Of the index of a placeholder: in a name, and in a number.
_INDEX_DIGITS = 10
_INDEX_BYTES = 4
_TOKEN_BYTES = 32
_NUMBER_START = pickle.LONG1 + bytes([_INDEX_BYTES + _TOKEN_BYTES])


class Placeholders:
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
        return plain_global(module, name) + pickle.LONG_BINPUT + slot


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

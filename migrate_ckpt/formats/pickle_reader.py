"""Reads a pickle without importing or calling anything that it names.

The opcodes are checked first (`migrate_ckpt.formats.shadow`), then CPython's C unpickler does the work. Each global
it asks for is answered with a type made for this one load, whose metaclass records a call, an instantiation, a state
and items instead of doing them (`migrate_ckpt.foreign`). Only what is harmless becomes real: plain containers,
numbers and text, and what the tensor builder makes of storages. What the opcodes do is in CPython's
`Lib/pickletools.py`.
"""

from __future__ import annotations

import _pickle
import io
from typing import Any, Protocol

from migrate_ckpt.errors import MigrateCkptError, TooLarge, UnreadableCheckpoint, UnsafePickle
from migrate_ckpt.formats.container import Contents
from migrate_ckpt.formats.plain_values import Fold
from migrate_ckpt.formats.recording import Load
from migrate_ckpt.formats.shadow import check_pickle
from migrate_ckpt.formats.storages import StorageHandle

MAX_PICKLE_BYTES = 512 << 20
_BUFFER_BYTES = 1 << 20


class TensorBuilder(Protocol):
    """Makes tensors of storages, in one of several ways: real ones, or only their outline."""

    def storage(self, pid: object) -> StorageHandle: ...

    def constant(self, module: str, name: str) -> Any:
        """The value of a global such as `torch.float32`, or NOT_FOLDED."""
        ...

    def folds(self) -> dict[tuple[str, str], Fold]:
        """Functions of torch that are answered with a value (or NOT_FOLDED), by module and name."""
        ...

    def finish(self) -> None:
        """Called when the pickle has been read."""
        ...


def read_pickle(data: bytes, builder: TensorBuilder) -> Contents:
    """Read one pickle.

    Raises:
        UnsafePickle: It does what no pickler writes.
        UnreadableCheckpoint: It is damaged or of no kind that is known here.
        TooLarge: It is larger than any checkpoint's.
    """
    if len(data) > MAX_PICKLE_BYTES:
        raise TooLarge(f"the pickle has {len(data)} bytes; the limit is {MAX_PICKLE_BYTES}")
    if check_pickle(data) < len(data):
        raise UnsafePickle("the pickle goes on after its end")
    try:
        load, value = _load(data, builder, "utf-8")
    except _NoUtf8:
        # A byte string of Python 2 that is no UTF-8. Latin-1 keeps each byte, and NumPy takes such text as bytes.
        load, value = _load(data, builder, "latin-1")
    builder.finish()
    load.finish()
    protocol = data[1] if data[:1] == b"\x80" else 0
    names = tuple(dict.fromkeys(f"{module}.{name}" for module, name in load.globals))
    return Contents(value, max(2, protocol), names, load.nodes, load.hidden_calls)


def _load(data: bytes, builder: TensorBuilder, encoding: str) -> tuple[Load, Any]:
    load = Load(builder)
    try:
        return load, _Unpickler(data, load, encoding).load()
    except MigrateCkptError:
        raise
    except MemoryError as error:
        raise TooLarge("the pickle inside needs more memory than there is") from error
    # Whatever a broken pickle makes the C unpickler or an answer of ours raise means the same: it is no good.
    except Exception as error:
        refusal = _NoUtf8 if isinstance(error, UnicodeDecodeError) else UnreadableCheckpoint
        raise refusal(
            f"the pickle inside is damaged: {type(error).__name__}: {str(error)[:200]!r}"
        ) from error


class _NoUtf8(UnreadableCheckpoint):
    """A text in the pickle is not what it should be encoded in."""


class _Unpickler(_pickle.Unpickler):
    def __init__(self, data: bytes, load: Load, encoding: str) -> None:
        # With a buffer, which can be looked into, the unpickler does not come for each opcode.
        super().__init__(io.BufferedReader(io.BytesIO(data), _BUFFER_BYTES), encoding=encoding)
        self._find = load.find
        self._storage = load.builder.storage

    def find_class(self, module: str, name: str) -> Any:
        return self._find(module, name)

    def persistent_load(self, pid: Any) -> Any:
        return self._storage(pid)

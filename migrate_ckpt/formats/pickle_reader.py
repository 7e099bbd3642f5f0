"""Reads a pickle without importing or calling anything that it names.

The opcodes are checked first (`migrate_ckpt.formats.shadow`), and those of plain tensors shortened on the way; then
CPython's C unpickler does the work. Each global it asks for is answered with a type made for this one load, whose
metaclass records a call, an instantiation, a state and items instead of doing them (`migrate_ckpt.foreign`). Only what
is harmless becomes real: plain containers, numbers and text, and what the tensor builder makes of storages. What the
opcodes do is in CPython's `Lib/pickletools.py`.
"""

from __future__ import annotations

import _pickle
import io
from typing import Any, Protocol, runtime_checkable

from migrate_ckpt.errors import MigrateCkptError, TooLarge, UnreadableCheckpoint, UnsafePickle
from migrate_ckpt.foreign import ForeignGlobal
from migrate_ckpt.formats.container import Contents
from migrate_ckpt.formats.plain_values import NOT_FOLDED, Fold
from migrate_ckpt.formats.recording import Load
from migrate_ckpt.formats.shadow import check_pickle
from migrate_ckpt.formats.storages import StorageHandle
from migrate_ckpt.formats.tensor_matches import Layout, TensorMatches

MAX_PICKLE_BYTES = 512 << 20

_REBUILD_TENSOR = ("torch._utils", "_rebuild_tensor_v2")
_ORDERED_DICT = ("collections", "OrderedDict")


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


@runtime_checkable
class PlainTensorBuilder(TensorBuilder, Protocol):
    """One that also makes a plain tensor at once (`migrate_ckpt.formats.tensor_matches`)."""

    def plain_tensor(
        self, storage_type: ForeignGlobal, key: str, location: str, layout: Layout
    ) -> Any:
        """What its fold of `_rebuild_tensor_v2` would make of the same, or NOT_FOLDED."""
        ...

    def start_again(self) -> None:
        """Forget what was built: the pickle will be read another time."""
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
    if isinstance(builder, PlainTensorBuilder):
        tensors = TensorMatches(data)
        _check(data, tensors)
        shortened = tensors.shorten()
        if shortened is not None:
            try:
                return _read(*shortened, builder)
            except _NotAsMatched:
                builder.start_again()
    _check(data)
    return _read(data, [], builder)


def _check(data: bytes, tensors: TensorMatches | None = None) -> None:
    if check_pickle(data, tensors) < len(data):
        raise UnsafePickle("the pickle goes on after its end")


def _read(data: bytes, layouts: list[Layout], builder: TensorBuilder) -> Contents:
    try:
        load, value = _load(data, layouts, builder, "utf-8")
    except _NoUtf8:
        # A byte string of Python 2 that is no UTF-8. Latin-1 keeps each byte, and NumPy takes such text as bytes.
        load, value = _load(data, layouts, builder, "latin-1")
    builder.finish()
    load.finish()
    protocol = data[1] if data[:1] == b"\x80" else 0
    names = tuple(dict.fromkeys(f"{module}.{name}" for module, name in load.globals))
    nested = frozenset(f"{module}.{name}" for module, name in load.globals if "." in name)
    return Contents(value, max(2, protocol), names, load.nodes, load.hidden_calls, nested)


def _load(
    data: bytes, layouts: list[Layout], builder: TensorBuilder, encoding: str
) -> tuple[Load, Any]:
    load = Load(builder)
    unpickler = _Unpickler(data, load, encoding)
    if layouts:
        unpickler = _ShortenedUnpickler(data, load, encoding, layouts)
    try:
        return load, unpickler.load()
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


class _NotAsMatched(UnreadableCheckpoint):
    """What was taken for the opcodes of a plain tensor is something else."""


class _Whole(io.BytesIO):
    """Lets the unpickler, which looks ahead to come less often, see all bytes at once, where they are."""

    def peek(self, size: int = -1) -> bytes:
        return self.getvalue()[self.tell() :]


class _Unpickler(_pickle.Unpickler):
    def __init__(self, data: bytes, load: Load, encoding: str) -> None:
        super().__init__(_Whole(data), encoding=encoding)
        self._find = load.find
        self._storage = load.builder.storage

    def find_class(self, module: str, name: str) -> Any:
        return self._find(module, name)

    def persistent_load(self, pid: Any) -> Any:
        return self._storage(pid)


class _ShortenedUnpickler(_Unpickler):
    """Answers the persistent ids, too, that stand in a shortened pickle for its plain tensors."""

    def __init__(self, data: bytes, load: Load, encoding: str, layouts: list[Layout]) -> None:
        super().__init__(data, load, encoding)
        assert isinstance(load.builder, PlainTensorBuilder)
        self._plain_tensor = load.builder.plain_tensor
        self._layouts = iter(layouts)
        self._globals = load.globals

    def persistent_load(self, pid: Any) -> Any:
        if type(pid) is tuple and len(pid) == 6 and type(pid[0]) is not str:
            function, text, storage_type, key, location, hooks = pid
            # One more than there are is an id that stood in the file itself.
            layout = next(self._layouts, None)
            if (
                layout is not None
                and function is self._globals.get(_REBUILD_TENSOR)
                and hooks is self._globals.get(_ORDERED_DICT)
                and type(text) is type(key) is type(location) is str
                and text == "storage"
                and isinstance(storage_type, ForeignGlobal)
            ):
                made = self._plain_tensor(storage_type, key, location, layout)
                if made is not NOT_FOLDED:
                    return made
            raise _NotAsMatched
        return self._storage(pid)

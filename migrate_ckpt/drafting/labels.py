"""Digests of values of any kind, by which those that hold the same are found."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

from migrate_ckpt.content_hashes import hash_whole
from migrate_ckpt.foreign import ForeignGlobal, ForeignObject, global_path, recipe
from migrate_ckpt.formats.storages import StorageHandle
from migrate_ckpt.operations.sections import is_tensor

MAX_DEPTH = 64
_BLOCK_BYTES = 1 << 20


def is_dense(value: Any) -> bool:
    """Tell whether a value is a tensor that operations can compute with."""
    if not is_tensor(value):
        return False
    import torch

    return value.layout is torch.strided and not value.is_quantized


def label_of(value: Any, *, reads_tensors: bool = True) -> bytes:
    """Return a digest that two values have in common if they hold the same, as far as it can be told.

    What cannot be compared, or is nested deeper than any value that is known, has one that nothing else has. Each
    object is looked at once, at however many places it is; the order of names does not count.

    Args:
        value: A value.
        reads_tensors: Whether what dense tensors hold counts, too, and not only their dtypes and shapes.
    """
    return _Labels(reads_tensors=reads_tensors).of(value)


class _Labels:
    def __init__(self, *, reads_tensors: bool) -> None:
        self._reads_tensors = reads_tensors
        self._known: dict[int, bytes] = {}

    def of(self, value: Any, depth: int = 0) -> bytes:
        if depth > MAX_DEPTH:
            return _unique()
        if id(value) not in self._known:
            # What is met again inside of itself.
            self._known[id(value)] = b"itself"
            self._known[id(value)] = _digest(self._parts(value, depth + 1))
        return self._known[id(value)]

    def _parts(self, value: Any, depth: int) -> Iterator[bytes]:
        """Yield what a value consists of, a word for its kind first."""
        if isinstance(value, StorageHandle):
            yield from (b"storage", global_path(value.type).encode(), _bytes_of(value))
        elif isinstance(value, ForeignGlobal):
            yield from (b"global", global_path(value).encode())
        elif isinstance(value, ForeignObject):
            yield b"object"
            yield from (self.of(part, depth) for part in _instructions(value))
        elif is_dense(value):
            content = hash_whole(value) if self._reads_tensors and not value.is_meta else 0
            yield from (b"tensor", f"{value.dtype} {list(value.shape)} {content}".encode())
        elif isinstance(value, Mapping):
            yield type(value).__name__.encode()
            yield from sorted(
                self.of(key, depth) + self.of(child, depth) for key, child in value.items()
            )
        elif isinstance(value, set | frozenset):
            yield type(value).__name__.encode()
            yield from sorted(self.of(member, depth) for member in value)
        elif isinstance(value, list | tuple):
            yield type(value).__name__.encode()
            yield from (self.of(child, depth) for child in value)
        elif is_tensor(value):
            yield _unique()
        else:
            # Numbers, texts, bytes, and what torch itself makes of some values: a dtype, a device.
            yield from (type(value).__name__.encode(), repr(value).encode("utf-8", "surrogatepass"))


def _digest(parts: Iterator[bytes]) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


def _unique() -> bytes:
    return secrets.token_bytes(32)


def _instructions(value: ForeignObject) -> Iterator[Any]:
    made = recipe(value)
    yield from (made.function, made.args, made.kwargs, made.state, made.items, vars(value))


def _bytes_of(handle: StorageHandle) -> bytes:
    container = handle.container
    if container is None or handle.key not in container.storages:
        return _unique()
    stored, digest = container.storages[handle.key], hashlib.sha256()
    end = stored.data_offset + stored.size
    for start in range(stored.data_offset, end, _BLOCK_BYTES):
        digest.update(container.source.read(start, min(_BLOCK_BYTES, end - start)))
    return digest.digest()

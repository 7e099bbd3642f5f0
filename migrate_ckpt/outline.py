"""The outline of a checkpoint: each tensor and value by its path, with shape and dtype, without any tensor data."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from migrate_ckpt.foreign import ForeignGlobal, ForeignObject, global_path
from migrate_ckpt.foreign_kinds import ForeignSequence
from migrate_ckpt.operations.sections import is_tensor

MAX_ENTRIES = 100_000
MAX_DEPTH = 32
MAX_KEY_LENGTH = 1000
MAX_TEXT_LENGTH = 200


class TensorOutline(NamedTuple):
    """What is known of a tensor without its bytes. The dtype is torch's name of it, such as `float32`."""

    dtype: str
    shape: tuple[int, ...]
    itemsize: int

    def __hash__(self) -> int:
        # As a key it is one of its own, as the tensor is that it stands for.
        return id(self)

    @property
    def nbytes(self) -> int:
        """The bytes of its elements, whatever the storage behind it has."""
        return math.prod(self.shape) * self.itemsize


Identify = Callable[[Any], Hashable]
"""Tells one tensor's bytes from another's without looking at them: from where they are, for example."""


@dataclass(frozen=True, slots=True)
class OutlineEntry:
    """One value of a checkpoint: a tensor with dtype, shape and size in bytes, or a leaf with a short text.

    `path` has the keys from the top of the checkpoint to the value. `content` tells two values apart that look alike;
    it is for comparing outlines of one run, and None for values that their text says all of.
    """

    path: tuple[str, ...]
    kind: str
    dtype: str | None = None
    shape: tuple[int, ...] | None = None
    text: str | None = None
    nbytes: int | None = None
    content: Hashable = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        known = {
            "path": list(self.path),
            "kind": self.kind,
            "dtype": self.dtype,
            "shape": None if self.shape is None else list(self.shape),
            "nbytes": self.nbytes,
            "text": self.text,
        }
        return {key: value for key, value in known.items() if value is not None}


def outline(
    value: object, *, max_entries: int = MAX_ENTRIES, identify: Identify | None = None
) -> list[OutlineEntry]:
    """The outline of a checkpoint, with tensors or `TensorOutline`s in it; at most so many entries.

    With `identify` the entries have a content: for tensors what it returns.
    """
    entries: list[OutlineEntry] = []
    for entry in _walk(value, (), frozenset(), identify):
        if len(entries) == max_entries:
            break
        entries.append(entry)
    return entries


def each_once(value: object) -> Iterator[tuple[tuple[str, ...], object]]:
    """Every value of a checkpoint, wherever it stands, with one of the paths to it; a shared one comes once."""
    seen: set[int] = set()
    left: list[tuple[tuple[str, ...], object]] = [((), value)]
    while left:
        path, each = left.pop()
        if id(each) not in seen:
            seen.add(id(each))
            yield path, each
            left += reversed([((*path, key), child) for key, child in _children(each)])


def _walk(
    value: object, path: tuple[str, ...], above: frozenset[int], identify: Identify | None
) -> Iterator[OutlineEntry]:
    if isinstance(value, TensorOutline):
        yield OutlineEntry(path, "tensor", value.dtype, value.shape, nbytes=value.nbytes)
    elif is_tensor(value):
        yield _tensor_entry(value, path, identify)
    elif len(path) > MAX_DEPTH or id(value) in above:
        yield OutlineEntry(path, _kind(value), text="...")
    else:
        children = _children(value)
        if not children:
            content = None if identify is None else _content(value)
            yield OutlineEntry(path, _kind(value), text=_text(value), content=content)
        for key, child in children:
            yield from _walk(child, (*path, key), above | {id(value)}, identify)


def _tensor_entry(tensor: Any, path: tuple[str, ...], identify: Identify | None) -> OutlineEntry:
    return OutlineEntry(
        path,
        "tensor",
        str(tensor.dtype).removeprefix("torch."),
        tuple(tensor.shape),
        nbytes=tensor.numel() * tensor.element_size(),
        content=None if identify is None else identify(tensor),
    )


def _content(value: object) -> Hashable:
    """What a text that is cut short, or only counts, does not say of a leaf."""
    if type(value) in (str, int, bytes, frozenset):
        return value
    if type(value) is bytearray:
        return bytes(value)
    return frozenset(value) if type(value) is set else None


def _children(value: object) -> list[tuple[str, Any]]:
    attributes = (
        [(_text(name), child) for name, child in vars(value).items()]
        if isinstance(value, ForeignObject)
        else []
    )
    if isinstance(value, Mapping):
        return [(_text(key), child) for key, child in value.items()] + attributes
    if type(value) in (list, tuple) or isinstance(value, ForeignSequence):
        return [(str(index), child) for index, child in enumerate(value)] + attributes  # type: ignore[arg-type,var-annotated]
    return attributes


def _kind(value: object) -> str:
    if isinstance(value, ForeignGlobal):
        return global_path(value)
    function = value.__recipe__.function if isinstance(value, ForeignObject) else None
    if isinstance(function, ForeignGlobal):
        return global_path(function)
    return "foreign" if isinstance(value, ForeignObject) else type(value).__name__


def _text(value: object) -> str:
    """A short text of a value, safe to print whatever the file holds."""
    if type(value) is int and value.bit_length() > 128:
        return f"an int of {value.bit_length()} bits"
    if type(value) in (set, frozenset):
        # All of it would be written out, at each of the places that it is at.
        return f"a {type(value).__name__} of {len(value)}"  # type: ignore[arg-type]
    if type(value) is tuple and _length(value, MAX_KEY_LENGTH) > MAX_KEY_LENGTH:
        return f"a tuple of {len(value)}"
    if type(value) in (str, bytes, bytearray):
        value = value[:MAX_TEXT_LENGTH]  # type: ignore[index]
    shown = printable(value if type(value) is str else repr(value))
    return shown if len(shown) <= MAX_TEXT_LENGTH else shown[: MAX_TEXT_LENGTH - 3] + "..."


def _length(value: object, most: int) -> int:
    """About how long the text of a tuple's part is; no more exactly than up to `most`."""
    if type(value) in (str, bytes):
        return len(value)  # type: ignore[arg-type]
    if type(value) is int:
        return value.bit_length() // 3
    if type(value) in (set, frozenset):
        return MAX_KEY_LENGTH * len(value)  # type: ignore[arg-type]
    length = 1
    if type(value) is tuple:
        for part in value:
            if length > most:
                break
            length += _length(part, most - length)
    return length


def printable(text: str) -> str:
    """The text with escapes in place of what must not reach a terminal."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )

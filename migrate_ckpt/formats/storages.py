"""Storages as a pickle names them: one record of bytes each, with a type, a device tag and a number of elements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from migrate_ckpt.errors import ForeignObjectError, UnreadableCheckpoint, UnsafePickle
from migrate_ckpt.foreign import ForeignGlobal, global_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from migrate_ckpt.formats.container import Container
    from migrate_ckpt.formats.twins import Twins

MAX_DIMENSIONS = 64
MAX_ELEMENTS = 1 << 47

# Name of torch's typed storage class: name of the dtype, bytes per element (torch/storage.py).
STORAGE_TYPES: dict[str, tuple[str, int]] = {
    "torch.DoubleStorage": ("float64", 8),
    "torch.FloatStorage": ("float32", 4),
    "torch.HalfStorage": ("float16", 2),
    "torch.BFloat16Storage": ("bfloat16", 2),
    "torch.LongStorage": ("int64", 8),
    "torch.IntStorage": ("int32", 4),
    "torch.ShortStorage": ("int16", 2),
    "torch.CharStorage": ("int8", 1),
    "torch.ByteStorage": ("uint8", 1),
    "torch.BoolStorage": ("bool", 1),
    "torch.ComplexDoubleStorage": ("complex128", 16),
    "torch.ComplexFloatStorage": ("complex64", 8),
    "torch.QUInt8Storage": ("quint8", 1),
    "torch.QInt8Storage": ("qint8", 1),
    "torch.QInt32Storage": ("qint32", 4),
    "torch.QUInt4x2Storage": ("quint4x2", 1),
    "torch.QUInt2x4Storage": ("quint2x4", 1),
    "torch.storage.UntypedStorage": ("uint8", 1),
}

TWINS = "migrate_ckpt.twins"
"""Where the memo of a deep copy keeps the twins that it makes of storages, if it makes any."""

QUANTISED = ("quint8", "qint8", "qint32", "quint4x2", "quint2x4")


# No slots: the pickle writer gives an instance a `__module__` of its own for a moment.
@dataclass(eq=False)
class StorageHandle:
    """A storage of the source, as one persistent id names it.

    Attributes:
        type: The foreign global of its type, such as `torch.FloatStorage`.
        key: Name of its record below `data/`.
        location: Its device tag, such as `cpu` or `cuda:7`.
        numel: Number of elements.
        container: The container that holds its bytes; None for one that is only about to be written.
    """

    type: ForeignGlobal
    key: str
    location: str
    numel: int
    container: Container | None

    def __post_init__(self) -> None:
        # Bytes per element beside the dtype: asked for once for each tensor.
        self.dtype_name, self.itemsize = STORAGE_TYPES[global_path(self.type)]

    def __setstate__(self, state: object) -> NoReturn:
        raise UnsafePickle("the pickle changes a storage")

    append = extend = add = __setstate__

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        self._refuse(f"for its attribute {name!r}")

    def __len__(self) -> int:
        self._refuse("len()")

    def __getitem__(self, index: object) -> NoReturn:
        self._refuse("for an item")

    def __iter__(self) -> Iterator[NoReturn]:
        self._refuse("for its items")

    def __bool__(self) -> bool:
        self._refuse("whether it is true")

    def _refuse(self, question: str) -> NoReturn:
        raise ForeignObjectError(
            f"A storage that stands by itself, a {global_path(self.type)} of {self.numel} elements, is not read: it "
            f"cannot answer {question}. Move, replace or drop it"
        )

    def __copy__(self) -> StorageHandle:
        # It says which bytes of a file are meant, and so does a copy: nobody can change them by way of a handle.
        return self

    def __deepcopy__(self, memo: Mapping[Any, Any]) -> StorageHandle:
        twins: Twins | None = memo.get(TWINS)
        return self if twins is None else twins.handle(self)


def check_persistent_id(pid: object) -> tuple[ForeignGlobal, str, str, int]:
    """Type, key, device tag and number of elements of `("storage", type, key, location, numel)`.

    Raises:
        UnreadableCheckpoint: It is anything else.
    """
    if not (type(pid) is tuple and len(pid) == 5 and pid[0] == "storage"):
        raise UnreadableCheckpoint(
            "the pickle refers to something outside itself that is no storage"
        )
    _, storage_type, key, location, numel = pid
    if not (
        isinstance(storage_type, ForeignGlobal)
        and type(key) is type(location) is str
        and type(numel) is int
    ):
        raise UnreadableCheckpoint("the pickle names a storage in a way that torch does not")
    if global_path(storage_type) not in STORAGE_TYPES or numel < 0:
        raise UnreadableCheckpoint(
            f"the pickle names a storage of an unknown kind: {global_path(storage_type)!r}"
        )
    return storage_type, key, location, numel


def find_storage(
    pid: object, container: Container, handles: dict[tuple[str, str], StorageHandle]
) -> StorageHandle:
    """The handle of the storage that a persistent id names; the same one each time.

    Raises:
        UnreadableCheckpoint: Its record is missing or of another size.
    """
    return handle_of(*check_persistent_id(pid), container, handles)


def handle_of(
    storage_type: ForeignGlobal,
    key: str,
    location: str,
    numel: int,
    container: Container,
    handles: dict[tuple[str, str], StorageHandle],
) -> StorageHandle:
    """The same for the checked parts of a persistent id."""
    entry = container.storages.get(key)
    if entry is None:
        raise UnreadableCheckpoint(
            f"the pickle names storage {key[:80]!r}, which the file does not hold"
        )
    handle = handles.get((key, storage_type.__qualname__))
    if handle is None:
        handle = StorageHandle(storage_type, key, location, numel, container)
        handles[key, storage_type.__qualname__] = handle
    if numel * handle.itemsize != entry.size:
        raise UnreadableCheckpoint(
            f"storage {key!r} has {entry.size} bytes where the pickle says {numel * handle.itemsize}"
        )
    return handle


def check_layout(numel: int, offset: object, size: object, stride: object) -> None:
    """Check that a tensor lies inside its storage of `numel` elements. Offset and strides are in elements.

    Raises:
        UnreadableCheckpoint: It does not, or its numbers are no numbers.
    """
    if not (
        type(size) is tuple and type(stride) is tuple and len(size) == len(stride) <= MAX_DIMENSIONS
    ):
        raise UnreadableCheckpoint("a tensor has no shape")
    for number in (offset, *size, *stride):
        if type(number) is not int or not 0 <= number < MAX_ELEMENTS:
            raise UnreadableCheckpoint("a tensor has an impossible offset, shape or stride")
    if 0 in size:
        return
    last: Any = offset
    count = 1
    for length, step in zip(size, stride, strict=True):
        last += (length - 1) * step
        count *= length
    if last >= numel or count >= MAX_ELEMENTS:
        raise UnreadableCheckpoint("a tensor reaches past the end of its storage")

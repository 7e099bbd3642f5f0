"""A distributed checkpoint in memory: nested as it was, with tensors whose bytes are there, or not."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from migrate_ckpt.absent import is_absent, mark_absent
from migrate_ckpt.content_hashes import hash_whole
from migrate_ckpt.errors import UnreadableCheckpoint, UnwritableCheckpoint
from migrate_ckpt.formats import open_container
from migrate_ckpt.formats.container import Container
from migrate_ckpt.formats.mapped import MappedFile, Part
from migrate_ckpt.operations.sections import is_tensor
from migrate_ckpt.outline import OutlineEntry, outline
from migrate_ckpt.sharded.distributed_metadata import (
    METADATA_NAME,
    DistributedMetadata,
    Item,
)
from migrate_ckpt.sharded.files import Files
from migrate_ckpt.sharded.flattening import KeyPath
from migrate_ckpt.sharded.places import Place

if TYPE_CHECKING:
    import torch

MAX_VALUE_BYTES = 1 << 30
"""How long a value may be that is no tensor."""


class DistributedCheckpoint:
    """What a folder holds, with tensors that are there or not, and which item each of its values is.

    Attributes:
        metadata: What its metadata says.
        ckpt: The state dict, nested as it was before it was flattened.
        needed: The items whose bytes something wanted to see and that were not there.
    """

    def __init__(self, files: Files, metadata: DistributedMetadata, there: Collection[str]) -> None:
        """Read some files; `there` are the names of the tensors to be read with their bytes."""
        self._parts = Parts(files)
        self.metadata = metadata
        self.needed: set[str] = set()
        self._items: dict[int, Item] = {}
        self._hashes: dict[int, int] = {}
        self._known: dict[int, list[OutlineEntry]] = {}
        self._alive: list[Any] = []
        self._mapped: set[tuple[str, int]] = set()
        self.ckpt: dict[str, Any] = {}
        for item in metadata.items:
            _put(self.ckpt, item.path, self._value(item, is_there=item.name in there))

    def item_of(self, value: Any) -> Item | None:
        """Return the item that a value is, if it is one and nobody has changed it."""
        item = self._items.get(_identity(value))
        if item is None:
            return None
        if not is_tensor(value):
            return item if self._known[id(value)] == outline(value, identify=id) else None
        is_whole = tuple(value.shape) == item.shape and value.dtype == item.dtype
        is_same = is_absent(value) or hash_whole(value) == self._hashes[_identity(value)]
        return item if is_whole and is_same else None

    def is_one(self, value: Any) -> bool:
        """Tell whether a value was one item, whatever it holds."""
        return _identity(value) in self._items

    def _value(self, item: Item, *, is_there: bool) -> Any:
        if item.dtype is None:
            value = self._parts.load(item.places[0])
            if is_tensor(value):
                raise UnreadableCheckpoint(
                    f"{item.name!r:.80} is a tensor, and {METADATA_NAME} says that it is none"
                )
            self._known[id(value)] = outline(value, identify=id)
        elif is_there:
            value = self._assembled(item)
            self._hashes[_identity(value)] = hash_whole(value)
        else:
            value = self._absent(item)
        self._items[_identity(value)] = item
        self._alive.append(value)
        return value

    def _absent(self, item: Item) -> torch.Tensor:
        import torch

        tensor = torch.empty(item.shape, dtype=item.dtype, device="meta")
        mark_absent(tensor.untyped_storage(), _Absent(self.needed, item.name))
        return tensor

    def _assembled(self, item: Item) -> torch.Tensor:
        import torch

        if len(item.places) == 1:
            [place] = item.places
            whole = _checked(item, place, self._parts.load(place))
            # Two names of one part, as a migration leaves them that put a tensor under both, are two tensors to torch.
            is_seen = (place.file, place.offset) in self._mapped
            self._mapped.add((place.file, place.offset))
            return whole.clone() if is_seen else whole
        tensor = torch.empty(item.shape, dtype=item.dtype)
        for place in item.places:
            part = tensor
            for dim, (start, size) in enumerate(zip(place.starts, place.sizes, strict=True)):
                part = part.narrow(dim, start, size)
            part.copy_(_checked(item, place, self._parts.load(place)))
        return tensor


class _Absent:
    """Notes which tensors are wanted (see `absent.AbsentBytes`)."""

    def __init__(self, needed: set[str], name: str) -> None:
        self._needed = needed
        self._name = name

    def note(self) -> None:
        self._needed.add(self._name)

    def refuse(self) -> None:
        self.note()
        raise UnwritableCheckpoint(f"the bytes of {self._name} are not there", where=self._name)


def _put(ckpt: Any, path: KeyPath, value: Any) -> None:
    """Put a value at a path; what is on the way is made: a list where the next name is a position."""
    *above, last = path
    for name, following in zip(above, path[1:], strict=True):
        made: Any = [] if type(following) is int else {}
        if isinstance(ckpt, list):
            if type(name) is not int or name > len(ckpt):
                raise UnreadableCheckpoint(f"the paths of {METADATA_NAME} leave a hole in a list")
            if name == len(ckpt):
                ckpt.append(made)
            ckpt = ckpt[name]
        elif isinstance(ckpt, dict):
            ckpt = ckpt.setdefault(name, made)
        else:
            raise UnreadableCheckpoint(f"the paths of {METADATA_NAME} go through a value")
    if isinstance(ckpt, list):
        if last != len(ckpt):
            raise UnreadableCheckpoint(f"the paths of {METADATA_NAME} leave a hole in a list")
        ckpt.append(value)
    elif isinstance(ckpt, dict):
        ckpt[last] = value
    else:
        raise UnreadableCheckpoint(f"the paths of {METADATA_NAME} go through a value")


class Parts:
    """The parts of values, each as `torch.save` has written it; their files are opened once."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._opened: dict[str, MappedFile] = {}

    def open(self, place: Place) -> Container:
        """Open what stands in a part of a file."""
        if place.file not in self._opened:
            self._opened[place.file] = MappedFile(self._files.open(place.file))
        return open_container(Part(self._opened[place.file], place.offset, place.length))

    def load(self, place: Place) -> Any:
        """Read what stands in a part of a file; nothing of it is imported."""
        from migrate_ckpt.formats.tensors import MappedTensors

        if not place.sizes and place.length > MAX_VALUE_BYTES:
            raise UnreadableCheckpoint(f"a value in {place.file} is longer than any that is known")
        container = self.open(place)
        return container.read(MappedTensors(container)).value


def _checked(item: Item, place: Place, value: Any) -> torch.Tensor:
    wanted = place.sizes or item.shape
    if not is_tensor(value) or value.dtype != item.dtype or tuple(value.shape) != tuple(wanted):
        raise UnreadableCheckpoint(
            f"{item.name!r:.80} in {place.file} is not what the metadata says"
        )
    tensor: torch.Tensor = value
    return tensor


def _identity(value: Any) -> int:
    return int(value.untyped_storage()._cdata) if is_tensor(value) else id(value)

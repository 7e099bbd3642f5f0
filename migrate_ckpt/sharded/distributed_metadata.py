"""The metadata of a `torch.distributed.checkpoint`: which tensor has which parts, and in which files these are.

It is a pickle, `.metadata`, of dataclasses of `torch.distributed.checkpoint.metadata` and `.filesystem` (torch 2.13),
which are read as foreign objects and written back as such, so that nothing is imported:

* `Metadata.state_dict_metadata`: for each flat name a `TensorStorageMetadata` (properties, size, chunks) or a
  `BytesStorageMetadata`;
* `Metadata.storage_data`: for each `MetadataIndex` (name, offset, index) a `_StorageInfo` (file, offset, length), where
  the part stands as `torch.save` writes it;
* `Metadata.planner_data`: for each flat name the path in the state dict that it was flattened from.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from migrate_ckpt.errors import ForeignObjectError, UnreadableCheckpoint
from migrate_ckpt.foreign import ForeignObject, global_path, made_by, recipe
from migrate_ckpt.formats.pickle_reader import MAX_PICKLE_BYTES, read_pickle
from migrate_ckpt.formats.plain_values import NOT_FOLDED, Fold
from migrate_ckpt.sharded.files import Files, read_whole
from migrate_ckpt.sharded.flattening import MAX_DEPTH, KeyPath, flat_name
from migrate_ckpt.sharded.places import Place, cover

if TYPE_CHECKING:
    import torch

METADATA_NAME = ".metadata"
OWN_GLOBALS = ("torch.distributed.checkpoint.*", "torch.serialization._get_layout", "pathlib.*Path")
"""What such a pickle names, of whatever checkpoint it is."""

_METADATA = "torch.distributed.checkpoint.metadata"
_FILESYSTEM = "torch.distributed.checkpoint.filesystem"


@dataclass(frozen=True, slots=True)
class Item:
    """One value of a distributed checkpoint.

    Attributes:
        name: Its flat name.
        path: Its path in the state dict.
        entry: What the metadata says of it.
        places: Its parts.
        dtype: That of a tensor; None for what is none.
        shape: That of a tensor.
    """

    name: str
    path: KeyPath
    entry: ForeignObject
    places: tuple[Place, ...]
    dtype: torch.dtype | None = None
    shape: tuple[int, ...] = ()


def is_distributed(files: Files) -> bool:
    """Tell whether some files are a distributed checkpoint."""
    return METADATA_NAME in files.sizes()


def named_by_metadata(files: Files) -> frozenset[str]:
    """Return the names of the files that a distributed checkpoint needs; none if its metadata cannot be read."""
    try:
        return frozenset(DistributedMetadata(files).files)
    except (UnreadableCheckpoint, OSError):
        return frozenset()


class DistributedMetadata:
    """The metadata, read.

    Attributes:
        contents: What the pickle holds and names.
        root: The `Metadata` itself.
        items: What is in the checkpoint, in its order.
    """

    def __init__(self, files: Files) -> None:
        """Read it.

        Raises:
            UnreadableCheckpoint: It is no such pickle, or names files that are not beside it.
        """
        self._sizes = files.sizes()
        contents = read_pickle(read_whole(files, METADATA_NAME, MAX_PICKLE_BYTES), _Values())
        self.contents = contents
        self.root = contents.value
        try:
            self.items = tuple(self._read())
        except UnreadableCheckpoint:
            raise
        except (
            ForeignObjectError,
            AttributeError,
            TypeError,
            ValueError,
            KeyError,
            IndexError,
        ) as error:
            raise UnreadableCheckpoint(
                f"{METADATA_NAME} is not what torch.distributed.checkpoint writes: {error}"
            ) from error

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the files that hold anything."""
        return tuple(dict.fromkeys(place.file for item in self.items for place in item.places))

    def _read(self) -> Iterator[Item]:
        _require(self.root, f"{_METADATA}.Metadata")
        places: dict[str, list[Place]] = {}
        for index, info in self.root.storage_data.items():
            place = self._place(index, info)
            places.setdefault(index.fqn, []).append(place)
        paths: Mapping[str, KeyPath] = vars(self.root).get("planner_data") or {}
        for name, entry in self.root.state_dict_metadata.items():
            if type(name) is not str or name not in places:
                raise UnreadableCheckpoint(f"{METADATA_NAME} says of {name!r:.80} not where it is")
            yield _item(name, _path(name, paths.get(name, (name,))), entry, places[name])

    def _place(self, index: Any, info: Any) -> Place:
        _require(index, f"{_METADATA}.MetadataIndex")
        _require(info, f"{_FILESYSTEM}._StorageInfo")
        file = info.relative_path
        if type(file) is not str or file not in self._sizes:
            raise UnreadableCheckpoint(
                f"{METADATA_NAME} names a file that is not beside it: {file!r:.80}"
            )
        if vars(info).get("transform_descriptors"):
            raise UnreadableCheckpoint(
                "the files of this distributed checkpoint are compressed or transformed, which is not read here"
            )
        offset, length = info.offset, info.length
        is_in_file = type(offset) is type(length) is int and offset >= 0 and length > 0
        if not is_in_file or offset + length > self._sizes[file]:
            raise UnreadableCheckpoint(f"{file} is shorter than {METADATA_NAME} says")
        # What is None is a default of the class, and not in the pickle.
        starts = tuple(vars(index).get("offset") or ())
        return Place(file, offset, length, starts, (), index, info)

    def write(self, items: Iterable[Item]) -> bytes:
        """Return the pickle of the same metadata for other items."""
        from migrate_ckpt.formats.pickle_writer import write_pickle
        from migrate_ckpt.formats.tensor_writer import TensorWriter

        root = copy.copy(self.root)
        listed = list(items)
        root.state_dict_metadata = {item.name: item.entry for item in listed}
        root.planner_data = {item.name: item.path for item in listed}
        root.storage_data = {place.index: place.info for item in listed for place in item.places}
        return write_pickle(root, TensorWriter())

    def renamed(self, item: Item, path: KeyPath, names: Mapping[str, str]) -> Item:
        """Return an item under another path, with its bytes where they are, in files that may have other names."""
        name = flat_name(path)
        places = tuple(
            replace(
                place,
                file=names[place.file],
                index=_with(place.index, "fqn", name),
                info=_with(place.info, "relative_path", names[place.file]),
            )
            for place in item.places
        )
        return Item(name, path, item.entry, places, item.dtype, item.shape)

    def new(self, path: KeyPath, value: Any, file: str, offset: int, length: int) -> Item:
        """Return the item of a value that was written into a file as a whole."""
        import torch

        name = flat_name(path)
        info = _made(
            f"{_FILESYSTEM}._StorageInfo",
            relative_path=file,
            offset=offset,
            length=length,
            transform_descriptors=None,
        )
        if not isinstance(value, torch.Tensor):
            index = _made(f"{_METADATA}.MetadataIndex", fqn=name, offset=None, index=None)
            entry = _made(f"{_METADATA}.BytesStorageMetadata")
            return Item(name, path, entry, (Place(file, offset, length, (), (), index, info),))
        zeros, shape = torch.Size([0] * value.dim()), value.shape
        index = _made(f"{_METADATA}.MetadataIndex", fqn=name, offset=zeros, index=0)
        chunk = _made(f"{_METADATA}.ChunkStorageMetadata", offsets=zeros, sizes=shape)
        properties = self._properties(value.dtype)
        entry = _made(
            f"{_METADATA}.TensorStorageMetadata", properties=properties, size=shape, chunks=[chunk]
        )
        place = Place(file, offset, length, tuple(zeros), tuple(shape), index, info)
        return Item(name, path, entry, (place,), value.dtype, tuple(shape))

    def _properties(self, dtype: torch.dtype) -> ForeignObject:
        """Return the properties of a tensor, those of one that is there with another dtype if there is one."""
        known = next((item for item in self.items if item.dtype is not None), None)
        if known is not None:
            made: ForeignObject = copy.deepcopy(known.entry.properties)
            recipe(made).state = (dtype, *recipe(made).state[1:])
            return made
        layout = made_by("torch.serialization._get_layout", ("torch.strided",), is_new=False)
        contiguous = made_by(f"{_METADATA}._MEM_FORMAT_ENCODING", (0,), is_new=False)
        made = _made(f"{_METADATA}.TensorProperties")
        recipe(made).state_kind = "other"
        recipe(made).state = (dtype, layout, False, contiguous, False)
        return made


def _path(name: str, path: Any) -> KeyPath:
    """Return the path of an item: names and positions, and not too many."""
    is_path = type(path) is tuple and 0 < len(path) <= MAX_DEPTH
    if not is_path or not all(type(p) is str or (type(p) is int and p >= 0) for p in path):
        raise UnreadableCheckpoint(f"{METADATA_NAME} says of {name!r:.80} no path in a state dict")
    return path  # type: ignore[no-any-return]


def _item(name: str, path: KeyPath, entry: Any, places: list[Place]) -> Item:
    kind = global_path(entry.__class__)
    if kind == f"{_METADATA}.BytesStorageMetadata":
        return Item(name, path, entry, tuple(places))
    _require(entry, f"{_METADATA}.TensorStorageMetadata")
    dtype, shape = recipe(entry.properties).state[0], tuple(entry.size)
    sizes = {tuple(chunk.offsets): tuple(chunk.sizes) for chunk in entry.chunks}
    parts = tuple(
        Place(p.file, p.offset, p.length, p.starts, sizes[p.starts], p.index, p.info)
        for p in places
    )
    import torch

    is_shape = all(type(size) is int and size >= 0 for size in shape)
    # Torch multiplies them, whether one is 0 or not.
    is_shape = is_shape and math.prod(max(size, 1) for size in shape) < 1 << 59
    if (
        not is_shape
        or not isinstance(dtype, torch.dtype)
        or not cover(shape, parts, dtype.itemsize)
    ):
        raise UnreadableCheckpoint(f"the parts of {name!r:.80} do not make the tensor")
    return Item(name, path, entry, parts, dtype, shape)


def _require(value: Any, kind: str) -> None:
    if not isinstance(value, ForeignObject) or global_path(value.__class__) != kind:
        raise UnreadableCheckpoint(
            f"{METADATA_NAME} is not what torch.distributed.checkpoint writes: there is no {kind}"
        )


def _with(value: ForeignObject, attribute: str, new: object) -> ForeignObject:
    changed = copy.copy(value)
    setattr(changed, attribute, new)
    return changed


def _made(kind: str, **attributes: Any) -> ForeignObject:
    """Return an object of a class that is not imported, with attributes."""
    made = made_by(kind, is_new=True)
    recipe(made).state_kind = "dict"
    vars(made).update(attributes)
    return made


class _Values:
    """Makes sizes and dtypes real, and knows no tensors (see `pickle_reader.TensorBuilder`)."""

    def storage(self, pid: object) -> Any:
        raise UnreadableCheckpoint(f"{METADATA_NAME} has a tensor in it")

    def constant(self, module: str, name: str) -> Any:
        import torch

        value = getattr(torch, name, None) if module == "torch" else None
        return value if isinstance(value, torch.dtype) else NOT_FOLDED

    def folds(self) -> dict[tuple[str, str], Fold]:
        import torch

        def size(*args: Any) -> Any:
            is_size = len(args) == 1 and type(args[0]) in (tuple, list)
            is_ints = is_size and all(type(part) is int for part in args[0])
            return torch.Size(args[0]) if is_ints else NOT_FOLDED

        return {("torch", "Size"): size}

    def finish(self) -> None:
        """Nothing is left to do."""

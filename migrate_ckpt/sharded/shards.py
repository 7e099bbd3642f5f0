"""A sharded checkpoint, opened: all its shards as one state dict, and which shard each tensor is of."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from migrate_ckpt.errors import UnreadableCheckpoint
from migrate_ckpt.file_run import without_garbage_collection
from migrate_ckpt.formats import open_container
from migrate_ckpt.formats.container import Container, Contents
from migrate_ckpt.formats.source import FileSource
from migrate_ckpt.history import History, read_history, remove_history, write_history
from migrate_ckpt.operations.moves import list_keys
from migrate_ckpt.sharded.files import Files
from migrate_ckpt.sharded.index_file import Index, read_index


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of the set.

    Attributes:
        name: Its name in the folder.
        container: The file, opened.
        contents: What it holds, as it was read.
        keys: The keys of its tensors, in their order.
    """

    name: str
    container: Container
    contents: Contents
    keys: tuple[str, ...]


@dataclass
class ShardedCheckpoint:
    """The shards and what they hold together; a context manager that closes them.

    Attributes:
        files: Where the files are.
        index: What the index says.
        shards: The files, in the order of the index.
        ckpt: The state dict of all of them; its history is that of the index.
    """

    files: Files
    index: Index
    shards: list[Shard] = field(default_factory=list)
    ckpt: OrderedDict[str, Any] = field(default_factory=OrderedDict)
    _sources: list[FileSource] = field(default_factory=list)

    @property
    def size(self) -> int:
        """The bytes of all shards."""
        return sum(source.size for source in self._sources)

    @property
    def format(self) -> str:
        kinds = dict.fromkeys(shard.container.format for shard in self.shards)
        return f"sharded {' and '.join(kinds)}"

    def read(self, builder_of: Callable[[Container], Any]) -> None:
        """Read all shards, with what makes the tensors of each.

        Raises:
            UnreadableCheckpoint: One holds more than tensors, or other keys than the index says.
        """
        for name in self.index.shards:
            source = self.files.open(name)
            self._sources.append(source)
            with without_garbage_collection():
                container = open_container(source)
                contents = container.read(builder_of(container))
            self._add(Shard(name, container, contents, _keys_of(name, contents.value)))
        self._put_history()

    def _add(self, shard: Shard) -> None:
        expected = self.index.keys[shard.name]
        lacks, more = (
            sorted(set(expected) - set(shard.keys)),
            sorted(set(shard.keys) - set(expected)),
        )
        if lacks or more:
            odd = f"lacks {list_keys(lacks, 3)}" if lacks else f"has {list_keys(more, 3)}, too"
            raise UnreadableCheckpoint(
                f"the shard {shard.name} does not hold what the index says: it {odd}"
            )
        if read_history(shard.contents.value).place is not None:
            raise UnreadableCheckpoint(
                f"the shard {shard.name} has a history of its own: it was migrated by itself, without the others. "
                "Start from shards that were not"
            )
        self.shards.append(shard)
        # In the order of the index, which is that of the model, mostly; safetensors knows none.
        self.ckpt.update((key, shard.contents.value[key]) for key in expected)
        metadata = vars(shard.contents.value).get("_metadata") if _is_ordered(shard) else None
        if isinstance(metadata, Mapping):
            vars(self.ckpt).setdefault("_metadata", OrderedDict()).update(metadata)

    def _put_history(self) -> None:
        history = read_history(dict(self.index.metadata))
        if history.place is not None:
            write_history(self.ckpt, history, in_metadata=True)

    def __enter__(self) -> ShardedCheckpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for source in self._sources:
            source.close()


def open_sharded(files: Files, name: str) -> ShardedCheckpoint:
    """Open the set that an index names; nothing of its shards is read yet."""
    return ShardedCheckpoint(files, read_index(files, name))


def take_history(ckpt: Any) -> History:
    """Take the history out of a state dict, and return it."""
    history = read_history(ckpt)
    remove_history(ckpt)
    return history


def _keys_of(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, Mapping) or not all(type(key) is str for key in value):
        raise UnreadableCheckpoint(f"the shard {name} is no state dict")
    return tuple(value)


def _is_ordered(shard: Shard) -> bool:
    return isinstance(shard.contents.value, OrderedDict)

"""The stream that `torch.save` wrote before 1.6, and still writes when told not to write its zip.

Five pickles: a magic number, a version, facts of the machine, the checkpoint, the list of the keys of its storages.
Then for each key the number of elements (8 bytes, little-endian) and the bytes (`_legacy_save` and `_legacy_load` in
torch/serialization.py). How long an element is, only the checkpoint's persistent ids say, so it is read twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any, NamedTuple

from migrate_ckpt.errors import UnreadableCheckpoint
from migrate_ckpt.formats.container import Contents
from migrate_ckpt.formats.legacy_ids import LegacyTensors, NamedStorages
from migrate_ckpt.formats.mapped import MappedSource
from migrate_ckpt.formats.outline_tensors import OutlineTensors
from migrate_ckpt.formats.pickle_reader import TensorBuilder, read_pickle
from migrate_ckpt.formats.pickle_stream import pickle_at
from migrate_ckpt.formats.source import FileSource, Source

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_COUNT_BYTES = 8
# The magic number as protocols 2 to 5 write it, and as protocol 1 does.
_MARKS = (b"\x8a\x0a" + _MAGIC_NUMBER.to_bytes(10, "little"), b"L%dL\n" % _MAGIC_NUMBER)


def is_torch_legacy(start: bytes) -> bool:
    """Whether a file that starts like this is such a stream."""
    # Before the number stands nothing, or the protocol (2 bytes) and the length of a frame (9 bytes).
    return any(start.find(mark, 0, 11 + len(mark)) >= 0 for mark in _MARKS)


class LegacyStorage(NamedTuple):
    """Where the bytes of one storage are: offset and size in bytes of the source."""

    data_offset: int
    size: int


class TorchLegacy:
    """An opened stream (see `container.Container`).

    Attributes:
        source: Where its bytes come from.
        storages: Where the bytes of each storage are, by key, in file order.
        sources_of: The paths of the classes whose source code stands in the stream. torch compares it with the code
            it finds and warns; the zip has no place for it.
    """

    format = "torch-legacy"
    checksums = ()

    def __init__(self, source: FileSource) -> None:
        self.source = source
        # It has no directory: what stands where, only reading it from its beginning to its end tells.
        source.require([(0, source.size)])
        self.storages: dict[str, LegacyStorage] = {}
        offset = 0
        pickles = []
        for _ in range(5):
            pickles.append(pickle_at(source, offset))
            offset += len(pickles[-1])
        magic_number, version, machine, self._pickle, keys = pickles
        _check_head(*map(self._plain, (magic_number, version, machine)))
        named = NamedStorages()
        read_pickle(self._pickle, named)
        self.sources_of = tuple(dict.fromkeys(named.sources_of))
        self.storages = _find_storages(source, offset, self._plain(keys), named.itemsizes)

    @cached_property
    def mapped(self) -> MappedSource:
        """The file in memory."""
        return MappedSource(self.source)

    def read(self, builder: TensorBuilder) -> Contents:
        """Read the checkpoint's pickle.

        Raises:
            UnreadableCheckpoint: It, or one of its children, as `read_pickle` says.
        """
        return read_pickle(self._pickle, LegacyTensors(builder))

    def _plain(self, data: bytes) -> Any:
        """The value of a pickle that names no storage: none is known yet."""
        return read_pickle(data, OutlineTensors(self)).value


def _check_head(magic_number: object, version: object, machine: object) -> None:
    if magic_number != _MAGIC_NUMBER or version != _VERSION or type(machine) is not dict:
        raise UnreadableCheckpoint(
            f"the file begins like a stream of torch, but is not of version {_VERSION}, the only one there was"
        )
    if machine.get("little_endian") is not True:
        raise UnreadableCheckpoint(
            "the checkpoint was saved on a big-endian machine, which is not read here"
        )


def _find_storages(
    source: Source, offset: int, keys: object, itemsizes: dict[str, int]
) -> dict[str, LegacyStorage]:
    """Where each storage is. `offset` is where the first begins."""
    storages: dict[str, LegacyStorage] = {}
    for key in _check_keys(keys):
        if key not in itemsizes or key in storages:
            raise UnreadableCheckpoint(
                f"the file holds storage {key!r} twice, or the pickle does not name it"
            )
        count = int.from_bytes(source.read(offset, _COUNT_BYTES), "little", signed=True)
        offset += _COUNT_BYTES
        size = count * itemsizes[key]
        if not 0 <= size <= source.size - offset:
            raise UnreadableCheckpoint(
                f"storage {key!r} reaches past the end of the file: it is cut off or damaged"
            )
        storages[key] = LegacyStorage(offset, size)
        offset += size
    if offset != source.size:
        raise UnreadableCheckpoint(
            f"the file has {source.size - offset} bytes after the checkpoint. Several checkpoints in one file are not "
            "read: save each in a file of its own"
        )
    return storages


def _check_keys(keys: object) -> Iterable[str]:
    # torch takes the address of the storage. The keys become names of records, so nothing else will do.
    if not (
        type(keys) is list
        and all(
            type(key) is str
            and key.isascii()
            and key.removeprefix("-").isdigit()
            and len(key) <= 20
            for key in keys
        )
    ):
        raise UnreadableCheckpoint("the list of storages is not one that torch writes")
    return keys

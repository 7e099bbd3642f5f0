"""The zip that `torch.save` writes since 1.6: one pickle, and one record of bytes for each storage.

Records below one root folder: `data.pkl`, `byteorder`, `data/KEY` for each storage, `version`, and since 2.1 some whose
name begins with a dot (torch/serialization.py, caffe2/serialize/inline_container.cc). No `byteorder` means little.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

from migrate_ckpt.errors import TooLarge, UnreadableCheckpoint
from migrate_ckpt.formats.container import Contents
from migrate_ckpt.formats.mapped import MappedSource
from migrate_ckpt.formats.pickle_reader import MAX_PICKLE_BYTES, TensorBuilder, read_pickle
from migrate_ckpt.formats.pieces import Pieces
from migrate_ckpt.formats.source import FileSource
from migrate_ckpt.formats.verification import Checksum
from migrate_ckpt.formats.zip_reader import read_directory
from migrate_ckpt.formats.zip_writer import ALIGNMENT, ZipWriter

if TYPE_CHECKING:
    from migrate_ckpt.formats.tensor_writer import TensorWriter

DEFAULT_ROOT = "archive"
MAX_SMALL_RECORD_BYTES = 1 << 16
_VERSIONS = frozenset(b"%d" % version for version in range(1, 11))
_NEWEST_VERSION = b"3\n"
# What torch itself writes around the storages; `.data/serialization_id` and these are made anew.
_OWN_RECORDS = frozenset(
    (
        "data.pkl",
        ".format_version",
        ".storage_alignment",
        "byteorder",
        "version",
        ".data/serialization_id",
    )
)


class TorchZip:
    """An opened file: its records, and what they say (see `container.Container`).

    Attributes:
        source: Where its bytes come from.
        root: The name of the folder that holds all records.
        storages: The records of storages, by key, in file order.
        others: Records that torch does not know, by name without the root. They are carried along.
    """

    format = "torch"

    def __init__(self, source: FileSource) -> None:
        self.source = source
        entries = read_directory(source)
        roots = {name.partition("/")[0] for name in entries}
        if len(roots) != 1:
            raise UnreadableCheckpoint(
                "the zip is no checkpoint of torch: its records are not in one folder"
            )
        self.root = roots.pop()
        records = {name[len(self.root) + 1 :]: entry for name, entry in entries.items()}
        if "data.pkl" not in records:
            raise UnreadableCheckpoint("the zip holds no data.pkl: it is no checkpoint of torch")
        self.storages = {
            name[5:]: entry for name, entry in records.items() if name.startswith("data/")
        }
        self.others = {
            name: entry
            for name, entry in records.items()
            if not name.startswith("data/") and name not in _OWN_RECORDS
        }
        self._records = records
        self.version = self._read_version()

    @cached_property
    def mapped(self) -> MappedSource:
        """The file in memory."""
        return MappedSource(self.source)

    @property
    def checksums(self) -> Iterator[Checksum]:
        return (
            Checksum(entry.name, entry.data_offset, entry.size, entry.crc)
            for entry in self._records.values()
        )

    def read(self, builder: TensorBuilder) -> Contents:
        """Read the pickle.

        Raises:
            UnreadableCheckpoint: It, or one of its children, as `read_pickle` says.
        """
        entry = self._records["data.pkl"]
        if entry.size > MAX_PICKLE_BYTES:
            raise TooLarge(f"the pickle has {entry.size} bytes; the limit is {MAX_PICKLE_BYTES}")
        return read_pickle(self.source.read(entry.data_offset, entry.size), builder)

    def _read_version(self) -> bytes:
        byteorder = self._small_record("byteorder", b"little")
        if byteorder != b"little":
            raise UnreadableCheckpoint(
                "the checkpoint was saved on a big-endian machine, which is not read here"
            )
        version = self._small_record("version", b"")
        if version.strip() not in _VERSIONS:
            raise UnreadableCheckpoint(
                f"the checkpoint is of version {version[:20]!r} of torch's format; 1 to 10 are known"
            )
        return version

    def _small_record(self, name: str, default: bytes) -> bytes:
        entry = self._records.get(name)
        return (
            default
            if entry is None
            else self.source.read(entry.data_offset, min(entry.size, MAX_SMALL_RECORD_BYTES))
        )


def lay_out(pickle: bytes, writer: TensorWriter) -> Pieces:
    """The pieces of the file that holds a pickle and the storages it names.

    Storages of the container that `writer.base` is, unchanged in memory, stay ranges of its source.
    """
    base = writer.base
    zip_base = base if isinstance(base, TorchZip) else None
    root = zip_base.root if zip_base else DEFAULT_ROOT
    out = ZipWriter()
    out.add(f"{root}/data.pkl", pickle)
    out.add(f"{root}/.format_version", b"1")
    out.add(f"{root}/.storage_alignment", str(ALIGNMENT).encode())
    out.add(f"{root}/byteorder", b"little")
    unchanged = writer.unchanged_keys()
    if zip_base:
        out.keep(entry for key, entry in zip_base.storages.items() if key in unchanged)
    for storage in writer.storages:
        name = f"{root}/data/{storage.key}"
        if storage.key not in unchanged:
            out.add(name, storage.bytes())
        elif zip_base is None:
            assert base is not None
            out.add_range(name, base.source, base.storages[storage.key])
    out.keep(zip_base.others.values() if zip_base else ())
    out.add(f"{root}/version", zip_base.version if zip_base else _NEWEST_VERSION)
    out.add(f"{root}/.data/serialization_id", _serialization_id(out.crcs()))
    return out.finish()


def _serialization_id(crcs: Iterable[tuple[str, int, int]]) -> bytes:
    """Forty digits from what the file holds, so that the same content has the same id."""
    digest = hashlib.sha256(repr(list(crcs)).encode()).digest()
    return str(int.from_bytes(digest, "big") % 10**40).zfill(40).encode()

"""Tars of sharded checkpoints that lead elsewhere, lie about sizes, or hold code (T26)."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from tests.attacks.assemble import checkpoint, pickled, system
from tests.attacks.attack import DAMAGED, FAILED, PRESERVED, UNSAFE, Attack

INDEX = "model.safetensors.index.json"
REFUSED = (DAMAGED, UNSAFE)


class Payload:
    """Runs a command wherever it is unpickled by a loader that trusts files."""

    def __init__(self, command: str) -> None:
        self._command = command

    def __reduce__(self) -> Any:
        return os.system, (self._command,)


def attacks(command: str) -> Iterator[Attack]:
    hostile = pickled(system(command))
    shard = checkpoint(system(command))
    for name, members in _tars(hostile, shard):
        yield Attack(f"T26-{name}", tar_of(*members), REFUSED)
    for name, data in _headers(shard):
        yield Attack(f"T26-{name}", data, REFUSED)
    for name, index in _indexes():
        members = [(INDEX, index), ("x.bin", shard)]
        yield Attack(f"T26-index-{name}", tar_of(*members), REFUSED)
    yield Attack("T26-metadata-is-a-call", tar_of((".metadata", hostile)), REFUSED)
    for name, edit in _edits(command):
        yield Attack(f"T26-metadata-{name}", _distributed(edit), REFUSED)
    # What is hostile beside the names of files is carried along, as in any other checkpoint.
    carried = _distributed(lambda m: setattr(m, "storage_meta", Payload(command)))
    yield Attack("T26-metadata-carries-a-call", carried, (PRESERVED, FAILED))
    part = tar_of((".metadata", pickle.dumps(_metadata(len(shard)))), ("f.distcp", shard))
    yield Attack("T26-part-is-a-call", part, (*REFUSED, PRESERVED, FAILED))


def tar_of(*members: tuple[str | tarfile.TarInfo, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for member, data in members:
            if isinstance(member, str):
                member = tarfile.TarInfo(member)
            member.size = len(data) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(data))
    return packed.getvalue()


def _special(kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo("x.bin")
    member.type, member.linkname = kind, target
    return member


def _tars(hostile: bytes, shard: bytes) -> Iterator[tuple[str, list[Any]]]:
    index = (INDEX, json.dumps({"weight_map": {"a": "x.bin"}}).encode())
    yield "link-out", [(_special(tarfile.SYMTYPE, "/etc/passwd"), b""), index]
    yield "hard-link", [(_special(tarfile.LNKTYPE, INDEX), b""), index]
    yield "device", [(_special(tarfile.CHRTYPE), b""), index]
    yield "fifo", [(_special(tarfile.FIFOTYPE), b""), index]
    yield "climbing", [("../../x.bin", shard), index]
    yield "absolute", [("/tmp/x.bin", shard), index]
    yield "twice", [("x.bin", shard), ("x.bin", shard), index]
    yield "escapes-in-a-name", [("\x1b[31mx.bin", shard), index]
    yield "bare-pickle-as-shard", [("x.bin", hostile), index]
    yield "shard-is-a-tar", [("x.bin", tar_of(("x.bin", shard), index)), index]
    yield "shard-is-the-index", [(INDEX, json.dumps({"weight_map": {"a": INDEX}}).encode())]
    yield "other-key", [("x.bin", shard), index]
    yield "empty-shard", [("x.bin", b""), index]


def _headers(shard: bytes) -> Iterator[tuple[str, bytes]]:
    """Headers before those of the files, which say more of them."""
    files = tar_of(("x.bin", shard), (INDEX, json.dumps({"weight_map": {"a": "x.bin"}}).encode()))
    small = _pax(b"a", b"b")
    many = b"".join(_pax(b"k%d" % number, b"") for number in range(70_000))
    yield "global-header", _header(b"g", small) + files
    # Each file would have a copy of all.
    members = b"".join(_header(b"x", small) + _header(b"5", b"") for _ in range(9000))
    yield "global-header-with-many-records", _header(b"g", many) + members + files
    yield "header-with-many-records", _header(b"x", many) + files
    for kind in (b"x", b"g", b"L"):
        yield f"chain-of-{kind.decode()}", _header(kind, small) * 3000 + files
    yield "negative-size", _header(b"x", _pax(b"size", b"-5000")) + files
    yield "size-before-the-start", _header(b"x", _pax(b"size", b"-%d" % (1 << 62))) + files


def _header(kind: bytes, data: bytes) -> bytes:
    member = tarfile.TarInfo("d")
    member.type, member.size = kind, len(data)
    return member.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % tarfile.BLOCKSIZE)


def _pax(key: bytes, value: bytes) -> bytes:
    """A record, which begins with its own length."""
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest) + 1
    while len(b"%d" % length) + len(rest) != length:
        length += 1
    return b"%d" % length + rest


def _indexes() -> Iterator[tuple[str, bytes]]:
    yield "climbing", b'{"weight_map": {"a": "../x.bin"}}'
    yield "absolute", b'{"weight_map": {"a": "/etc/passwd"}}'
    yield "missing", b'{"weight_map": {"a": "y.bin"}}'
    yield "null-byte", b'{"weight_map": {"a": "x.bin\\u0000"}}'
    yield "numbers", b'{"weight_map": {"a": 1}}'
    yield "list", b'{"weight_map": ["x.bin"]}'
    yield "deep", b'{"weight_map": ' + b"[" * 100_000
    yield "metadata-is-a-list", b'{"metadata": [], "weight_map": {"a": "x.bin"}}'
    yield "not-a-number", b'{"metadata": {"total_size": NaN}, "weight_map": {"a": "y.bin"}}'


def _metadata(length: int) -> Metadata:
    size = torch.Size([2])
    chunk = ChunkStorageMetadata(torch.Size([0]), size)
    entry = TensorStorageMetadata(TensorProperties(dtype=torch.float32), size, [chunk])
    place = _StorageInfo("f.distcp", 0, length)
    return Metadata(
        {"a": entry},
        {"a": ("a",)},
        {MetadataIndex("a", torch.Size([0]), 0): place},
    )


def _distributed(edit: Callable[[Metadata], object]) -> bytes:
    part = io.BytesIO()
    torch.save(torch.ones(2), part)
    metadata = _metadata(len(part.getvalue()))
    edit(metadata)
    return tar_of((".metadata", pickle.dumps(metadata)), ("f.distcp", part.getvalue()))


def _edits(command: str) -> Iterator[tuple[str, Callable[[Metadata], object]]]:
    def info(metadata: Metadata) -> Any:
        return next(iter(metadata.storage_data.values()))

    def entry(metadata: Metadata) -> Any:
        return metadata.state_dict_metadata["a"]

    yield "climbing", lambda m: setattr(info(m), "relative_path", "../f.distcp")
    yield "absolute", lambda m: setattr(info(m), "relative_path", "/etc/passwd")
    yield "itself", lambda m: setattr(info(m), "relative_path", ".metadata")
    yield "past-the-end", lambda m: setattr(info(m), "length", 1 << 62)
    yield "before-the-start", lambda m: setattr(info(m), "offset", -1)
    yield "length-is-text", lambda m: setattr(info(m), "length", "9")
    yield "huge-shape", lambda m: _resize(m, 1 << 61)
    yield "negative-shape", lambda m: _resize(m, -2)
    yield "shape-of-floats", lambda m: setattr(entry(m), "size", (2.0,))
    yield "dtype-is-text", lambda m: setattr(entry(m).properties, "dtype", "torch.float32")
    yield "dtype-is-a-call", lambda m: setattr(entry(m).properties, "dtype", Payload(command))
    yield "no-chunks", lambda m: setattr(entry(m), "chunks", [])
    yield "path-is-a-list", lambda m: setattr(m, "planner_data", {"a": ["a"]})
    yield "path-with-a-hole", lambda m: setattr(m, "planner_data", {"a": ("x", 5)})
    yield "deep-path", lambda m: setattr(m, "planner_data", {"a": ("x",) * 100_000})
    yield "storage-is-a-call", lambda m: setattr(m, "storage_data", Payload(command))
    yield "size-beyond-torch", lambda m: _resize(m, 1 << 70, 0)
    yield "tensor-as-value", lambda m: m.state_dict_metadata.update(a=BytesStorageMetadata())
    yield "overlapping-parts", _overlap
    yield "path-below-a-tensor", _nest
    yield "entry-is-a-call", lambda m: setattr(m, "state_dict_metadata", {"a": Payload(command)})


def _resize(metadata: Metadata, *size: int) -> None:
    entry: Any = metadata.state_dict_metadata["a"]
    # torch.Size refuses what is no size by itself.
    entry.size = size
    entry.chunks[0].sizes = size


def _overlap(metadata: Metadata) -> None:
    """Say that two parts of two elements each, of which one is in both, are a tensor of four."""
    entry: Any = metadata.state_dict_metadata["a"]
    [place] = metadata.storage_data.values()
    entry.size = torch.Size([4])
    entry.chunks.append(ChunkStorageMetadata(torch.Size([1]), torch.Size([2])))
    metadata.storage_data[MetadataIndex("a", torch.Size([1]), 1)] = place


def _nest(metadata: Metadata) -> None:
    [(index, place)] = metadata.storage_data.items()
    metadata.state_dict_metadata["b"] = metadata.state_dict_metadata["a"]
    metadata.storage_data[MetadataIndex("b", index.offset, index.index)] = place
    metadata.planner_data = {"a": ("a",), "b": ("a", "x", "y")}

"""Writes pickles opcode by opcode, and zips field by field, so that they can be wrong in one place only."""

from __future__ import annotations

import pickle
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

MARK, TUPLE, REDUCE, BUILD, APPENDS, SETITEMS = b"(", b"t", b"R", b"b", b"e", b"u"
NONE, TRUE, FALSE, NOTHING = b"N", b"\x88", b"\x89", b")"


def text(value: str | bytes) -> bytes:
    raw = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    return pickle.dumps(value, protocol=2)[2:-1]


def fraction(value: float) -> bytes:
    return b"G" + struct.pack(">d", value)


def data_bytes(value: bytes) -> bytes:
    """Bytes as protocol 3 has them."""
    return b"B" + struct.pack("<I", len(value)) + value


def named(module: str, name: str) -> bytes:
    return b"c" + f"{module}\n{name}\n".encode()


def stack_named(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


def tuple_of(*items: bytes) -> bytes:
    return MARK + b"".join(items) + TUPLE


def list_of(*items: bytes) -> bytes:
    return b"]" + MARK + b"".join(items) + APPENDS


def dict_of(*pairs: tuple[bytes, bytes]) -> bytes:
    return b"}" + MARK + b"".join(key + value for key, value in pairs) + SETITEMS


def call(function: bytes, *args: bytes) -> bytes:
    return function + tuple_of(*args) + REDUCE


def put(index: int) -> bytes:
    return b"r" + struct.pack("<I", index)


def get(index: int) -> bytes:
    return b"j" + struct.pack("<I", index)


def pickled(opcodes: bytes, protocol: int = 2) -> bytes:
    return b"\x80" + bytes((protocol,)) + opcodes + b"."


def system(command: str) -> bytes:
    return call(named("posix", "system"), text(command))


def storage(key: str, numel: int, kind: str = "FloatStorage", *, module: str = "torch") -> bytes:
    fields = text("storage"), named(module, kind), text(key), text("cpu"), number(numel)
    return tuple_of(*fields) + b"Q"


def tensor(
    stored: bytes,
    *,
    offset: bytes = b"K\0",
    size: Sequence[int] | bytes = (2,),
    stride: Sequence[int] | bytes = (1,),
    requires_grad: bytes = FALSE,
    hooks: bytes | None = None,
) -> bytes:
    return call(
        named("torch._utils", "_rebuild_tensor_v2"),
        stored,
        offset,
        size if isinstance(size, bytes) else tuple_of(*map(number, size)),
        stride if isinstance(stride, bytes) else tuple_of(*map(number, stride)),
        requires_grad,
        hooks or ordered_dict(),
    )


def ordered_dict(*args: bytes) -> bytes:
    return call(named("collections", "OrderedDict"), *args)


@dataclass
class Record:
    """One entry of a zip; what is None is what it should be.

    Attributes:
        before: Bytes between the record before and this one.
        after: Bytes after the data, such as a data descriptor.
        central_name, central_size, central_crc, central_offset: What the directory says instead.
        copies: How often the directory names it.
    """

    name: bytes
    data: bytes
    flags: int = 0
    method: int = 0
    size: int | None = None
    crc: int | None = None
    extra: bytes = b""
    before: bytes = b""
    after: bytes = b""
    central_name: bytes | None = None
    central_size: int | None = None
    central_crc: int | None = None
    central_offset: int | None = None
    central_extra: bytes = b""
    copies: int = 1

    def local(self) -> bytes:
        crc = zlib.crc32(self.data) if self.crc is None else self.crc
        size = len(self.data) if self.size is None else self.size
        lengths = len(self.name), len(self.extra)
        fields = 20, self.flags, self.method, 0, 0, crc, size, size, *lengths
        header = struct.pack("<4s5H3I2H", b"PK\3\4", *fields)
        return header + self.name + self.extra + self.data + self.after

    def central(self, offset: int) -> bytes:
        name = self.name if self.central_name is None else self.central_name
        crc = zlib.crc32(self.data) if self.central_crc is None else self.central_crc
        size = len(self.data) if self.central_size is None else self.central_size
        offset = offset if self.central_offset is None else self.central_offset
        lengths = len(name), len(self.central_extra), 0
        fields = 0, 20, self.flags, self.method, 0, 0, crc, size, size, *lengths, 0, 0, 0, offset
        header = struct.pack("<4s6H3I5H2I", b"PK\1\2", *fields)
        return (header + name + self.central_extra) * self.copies


@dataclass
class Zip:
    """A zip of records; what is None is what it should be."""

    records: list[Record]
    prefix: bytes = b""
    before_directory: bytes = b""
    before_end: bytes = b""
    count: int | None = None
    directory_offset: int | None = None
    comment: bytes = b""
    suffix: bytes = b""
    disk: int = 0
    hidden: list[Record] = field(default_factory=list)

    def build(self) -> bytes:
        out = bytearray(self.prefix)
        directory = b""
        for record in self.records:
            out += record.before
            directory += record.central(len(out))
            out += record.local()
        for record in self.hidden:
            out += record.local()
        out += self.before_directory
        offset = len(out) if self.directory_offset is None else self.directory_offset
        count = sum(record.copies for record in self.records) if self.count is None else self.count
        sizes = self.disk, self.disk, count, count, len(directory), offset, len(self.comment)
        out += directory + self.before_end
        return bytes(out + struct.pack("<4s4H2IH", b"PK\5\6", *sizes) + self.comment + self.suffix)


def records(pickle_bytes: bytes, storages: Iterable[tuple[str, bytes]] = ()) -> list[Record]:
    """What a checkpoint of torch consists of."""
    return [
        Record(b"archive/data.pkl", pickle_bytes),
        Record(b"archive/byteorder", b"little"),
        *(Record(f"archive/data/{key}".encode(), data) for key, data in storages),
        Record(b"archive/version", b"3\n"),
    ]


def torch_zip(pickle_bytes: bytes, storages: Iterable[tuple[str, bytes]] = ()) -> bytes:
    return Zip(records(pickle_bytes, storages)).build()


def checkpoint(
    opcodes: bytes, protocol: int = 2, storages: Iterable[tuple[str, bytes]] = ()
) -> bytes:
    """A file whose checkpoint is an epoch and what these opcodes push."""
    value = dict_of((text("epoch"), number(3)), (text("payload"), opcodes))
    return torch_zip(pickled(value, protocol), storages)

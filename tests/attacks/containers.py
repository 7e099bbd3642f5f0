"""Files that two readers understand differently, or that are no checkpoint at all (T15 to T19)."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import replace

from tests.attacks.assemble import (
    Record,
    Zip,
    call,
    checkpoint,
    dict_of,
    named,
    number,
    pickled,
    records,
    storage,
    system,
    tensor,
    text,
    torch_zip,
    tuple_of,
)
from tests.attacks.attack import BOMB, DAMAGED, FAILED, PRESERVED, Attack

GOOD = pickled(dict_of((text("epoch"), number(3))))


def attacks(command: str) -> Iterator[Attack]:
    hostile = pickled(dict_of((text("payload"), system(command))))
    for name, data in _ambiguous(hostile):
        yield Attack(f"T15-{name}", data, (DAMAGED,))
    yield Attack("T15-nothing-wrong", torch_zip(GOOD), (PRESERVED,))
    for name, data, outcome in _bombs():
        yield Attack(f"T16-{name}", data, (outcome,))
    for name, data in _damaged():
        yield Attack(f"T17-{name}", data, (DAMAGED,))
    no_crc = [replace(record, crc=0, central_crc=0) for record in records(GOOD)]
    yield Attack("T17-no-checksums", Zip(no_crc).build(), (PRESERVED,))
    for name, data in _other_formats(hostile):
        yield Attack(f"T18-{name}", data, (DAMAGED,))
    yield from _legacy(command)
    for name, data in _safetensors():
        yield Attack(f"T19-{name}", data, (DAMAGED, BOMB))
    yield from _odd_safetensors()


def _ambiguous(hostile: bytes) -> Iterator[tuple[str, bytes]]:
    good = records(GOOD)
    evil = Record(b"archive/data.pkl", hostile)
    yield "two-pickles-of-one-name", Zip([*good, evil]).build()
    yield "evil-first", Zip([evil, *good]).build()
    yield "two-pickles-but-for-case", Zip([*good, replace(evil, name=b"archive/DATA.PKL")]).build()
    yield "two-roots", Zip([*good, replace(evil, name=b"other/data.pkl")]).build()
    yield "two-roots-but-for-case", Zip([*good, replace(evil, name=b"Archive/data.pkl")]).build()
    yield "directory-names-it-twice", Zip([replace(good[0], copies=2), *good[1:]]).build()
    yield (
        "other-name-in-the-directory",
        Zip([replace(good[0], central_name=b"archive/data.pkx"), *good[1:]]).build(),
    )
    yield "other-size-in-the-directory", Zip([replace(good[0], central_size=3), *good[1:]]).build()
    yield (
        "other-checksum-in-the-directory",
        Zip([replace(good[0], central_crc=1), *good[1:]]).build(),
    )
    shadowed = replace(good[-1], before=replace(evil).local())
    yield "hidden-record", Zip([*good[:-1], shadowed]).build()
    yield "hidden-record-at-the-end", Zip(good, hidden=[evil]).build()
    yield "program-in-front", Zip(good, prefix=b"#!/bin/sh\nexit\n").build()
    yield "header-in-front", Zip(good, prefix=b"PK\3\4" + bytes(60)).build()
    yield "comment", Zip(good, comment=b"x" * 10).build()
    yield "comment-that-is-an-end", Zip(good, comment=Zip([evil]).build()).build()
    yield "bytes-after-the-end", Zip(good, suffix=b"\0").build()
    yield "zip-after-the-end", Zip(good, suffix=torch_zip(hostile)).build()
    yield "zip-before-the-beginning", Zip(good, prefix=torch_zip(hostile)).build()
    yield "bytes-before-the-directory", Zip(good, before_directory=bytes(40)).build()
    yield "bytes-after-the-directory", Zip(good, before_end=bytes(8)).build()
    yield "too-few-counted", Zip(good, count=2).build()
    yield "too-many-counted", Zip(good, count=9).build()
    yield "another-disk", Zip(good, disk=1).build()
    yield "directory-elsewhere", Zip(good, directory_offset=0).build()
    yield "directory-past-the-end", Zip(good, directory_offset=0xFFFFFFF0).build()
    yield "directory-in-64-bit-without-any", Zip(good, directory_offset=0xFFFFFFFF).build()
    yield "record-past-the-end", Zip([replace(good[0], central_offset=10**6), *good[1:]]).build()
    yield (
        "record-in-64-bit-without-any",
        Zip([replace(good[0], central_offset=0xFFFFFFFF), *good[1:]]).build(),
    )
    yield "two-records-in-one-place", Zip([*good, replace(good[0], central_offset=0)]).build()
    yield (
        "extra-field-too-long",
        Zip(
            [
                replace(good[0], central_extra=struct.pack("<2H", 1, 99), central_size=0xFFFFFFFF),
                *good[1:],
            ]
        ).build(),
    )
    yield (
        "locator-that-points-nowhere",
        Zip(good, before_end=struct.pack("<4sIQI", b"PK\6\7", 0, 10**9, 1)).build(),
    )
    names = {
        "nul": b"archive/data/0\0.pkl",
        "backslash": b"archive\\data.pkl",
        "upwards": b"archive/../../etc/passwd",
        "absolute": b"/etc/passwd",
        "drive": b"C:\\x/data.pkl",
        "no-folder": b"data.pkl",
        "line-break": b"archive/a\r\nX: y",
        "escape": b"archive/\x1b[2J",
        "no-text": b"archive/\xff\xfe",
        "empty-part": b"archive//x",
        "long": b"archive/" + b"x" * 60_000,
    }
    for name, raw in names.items():
        yield f"name-with-{name}", Zip([*good, Record(raw, b"x")]).build()


def _bombs() -> Iterator[tuple[str, bytes, str]]:
    def deflated(name: bytes, data: bytes) -> Record:
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        packed = packer.compress(data) + packer.flush()
        return Record(name, packed, method=8, crc=zlib.crc32(data))

    good = records(GOOD)
    yield "deflated-pickle", Zip([deflated(b"archive/data.pkl", GOOD), *good[1:]]).build(), DAMAGED
    bomb = deflated(b"archive/data/0", bytes(64 << 20))
    yield "deflated-storage", Zip([*good[:2], bomb, good[3 - 1]]).build(), DAMAGED
    lie = replace(good[0], size=2**31, central_size=2**31)
    yield "pickle-of-two-gibibytes", Zip([lie, *good[1:]]).build(), DAMAGED
    method = replace(good[0], method=99)
    yield "unknown-method", Zip([method, *good[1:]]).build(), DAMAGED
    many = [Record(f"archive/data/{index}".encode(), b"") for index in range(20_000)]
    yield "twenty-thousand-records", Zip([*good, *many]).build(), PRESERVED
    quine = replace(good[0], copies=5000)
    yield "directory-of-one-record-again-and-again", Zip([quine, *good[1:]]).build(), DAMAGED


def _damaged() -> Iterator[tuple[str, bytes]]:
    good = records(GOOD)
    yield "encrypted", Zip([replace(good[0], flags=1), *good[1:]]).build()
    yield "strongly-encrypted", Zip([replace(good[0], flags=0x41), *good[1:]]).build()
    masked = replace(good[0], flags=0x2000)
    yield "masked-headers", Zip([masked, *good[1:]]).build()
    wrong = replace(good[0], crc=1, central_crc=1)
    yield "wrong-checksum-of-the-pickle", Zip([wrong, *good[1:]]).build()
    opcodes = dict_of((text("w"), tensor(storage("0", 2))))
    stored = records(pickled(opcodes), [("0", bytes(8))])
    stored[2] = replace(stored[2], crc=1, central_crc=1)
    yield "wrong-checksum-of-a-storage", Zip(stored).build()
    for name, version in {
        "no": b"",
        "absurd": b"99\n",
        "textual": b"x\r\n\x1b",
        "long": b"1" * 5000,
    }.items():
        yield f"{name}-version", Zip([*good[:-1], Record(b"archive/version", version)]).build()
    order = Record(b"archive/byteorder", b"middle\r\n")
    yield "unknown-byteorder", Zip([good[0], order, *good[2:]]).build()
    whole = checkpoint(number(1))
    yield "cut-in-half", whole[: len(whole) // 2]
    yield "cut-in-the-directory", whole[:-30]
    yield "first-bytes-only", whole[:4]


def _other_formats(hostile: bytes) -> Iterator[tuple[str, bytes]]:
    good = records(GOOD)
    yield "torchscript", Zip([*good, Record(b"archive/constants.pkl", hostile)]).build()
    code = Record(b"archive/code/__torch__.py", b"import os")
    yield "torchscript-code", Zip([*good, code]).build()
    package = Record(b"archive/.data/extern_modules", b"os\n")
    pickle_record = Record(b"archive/models/m.pkl", hostile)
    yield "torch-package", Zip([package, pickle_record, good[-1]]).build()
    yield "zip-of-something", Zip([Record(b"a/b", b"x")]).build()
    yield "wheel", Zip([Record(b"pkg/__init__.py", b"import os")]).build()
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            member = tarfile.TarInfo(name)
            member.size = len(hostile)
            archive.addfile(member, io.BytesIO(hostile))
    yield "old-tar", tar.getvalue()
    yield "gzip", b"\x1f\x8b\x08" + bytes(30)
    yield "seven-zip", b"7z\xbc\xaf\x27\x1c" + bytes(30)
    yield "xz", b"\xfd7zXZ\0" + bytes(30)
    yield "bare-pickle", hostile
    yield "bare-pickle-of-protocol-0", b"cposix\nsystem\n(S'true'\ntR."
    yield "numpy-objects", b"\x93NUMPY\1\0v\0" + b"{'descr': '|O', 'shape': (1,), }" + hostile
    yield "hdf5", b"\x89HDF\r\n\x1a\n" + bytes(100)
    yield "gguf", b"GGUF\3\0\0\0" + b"\xff" * 16
    yield "pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    yield "html", b"<!doctype html><script>alert(1)</script>"
    yield "elf", b"\x7fELF" + bytes(100)
    yield "random", bytes(range(256)) * 8
    yield "nul-bytes", bytes(1000)
    yield "one-byte", b"P"


def legacy(
    value: bytes, keys: bytes = b"]", *, machine: bytes | None = None, after: bytes = b""
) -> bytes:
    """The stream of before 1.6."""
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
    version = pickle.dumps(1001, protocol=2)
    known = dict_of((text("little_endian"), b"\x88"), (text("protocol_version"), number(1001)))
    return magic + version + pickled(machine or known) + pickled(value) + pickled(keys) + after


def _legacy(command: str) -> Iterator[Attack]:
    def stored(numel: int) -> bytes:
        fields = text("storage"), named("torch", "FloatStorage"), text("0"), text("cpu")
        return tuple_of(*fields, number(numel), b"N") + b"Q"

    keys = b"](" + text("0") + b"e"
    payload = dict_of((text("payload"), system(command)))
    names = ("posix.system",)
    yield Attack("T18-legacy-call", legacy(payload), (PRESERVED,), keeps=names)
    machine = dict_of((text("little_endian"), b"\x88"), (text("x"), system(command)))
    yield Attack(
        "T18-legacy-call-in-the-head", legacy(b"}", machine=machine), (PRESERVED,), drops=names
    )
    listed = b"](" + system(command) + b"e"
    yield Attack("T18-legacy-call-as-key", legacy(b"}", listed), (DAMAGED,))
    absurd = dict_of((text("w"), tensor(stored(2**33))))
    yield Attack("T18-legacy-32-gibibytes", legacy(absurd, keys, after=bytes(8)), (DAMAGED,))
    lie = legacy(dict_of((text("w"), tensor(stored(2)))), keys, after=struct.pack("<q", 2**60))
    yield Attack("T18-legacy-absurd-count", lie, (DAMAGED,))
    below = legacy(dict_of((text("w"), tensor(stored(2)))), keys, after=struct.pack("<q", -1))
    yield Attack("T18-legacy-negative-count", below, (DAMAGED,))
    yield Attack("T18-legacy-trailing-bytes", legacy(b"}", after=b"x"), (DAMAGED,))
    twice = legacy(b"}") + legacy(payload)
    yield Attack("T18-legacy-second-checkpoint", twice, (DAMAGED,))
    yield Attack("T18-legacy-cut-off", legacy(payload)[:-20], (DAMAGED,))
    path = b"](" + text("../../x") + b"e"
    yield Attack("T18-legacy-path-as-key", legacy(b"}", path), (DAMAGED,))
    source = tuple_of(text("module"), named("a", "B"), text("b.py"), text("import os")) + b"Q"
    yield Attack("T18-legacy-source-code", legacy(dict_of((text("m"), source))), (PRESERVED,))
    deep = legacy(dict_of((b")" + b"\x85" * 1000, b"N")))
    yield Attack("T18-legacy-deep-key", deep, (BOMB,))
    call_in_tar = call(named("torch", "load"), text("x"))
    yield Attack("T18-legacy-not-a-dict", legacy(call_in_tar), (FAILED,))


def safetensors(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def _safetensors() -> Iterator[tuple[str, bytes]]:
    def entry(begin: int, end: int, **changes: object) -> dict[str, object]:
        return {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end], **changes}

    yield "length-that-wraps", safetensors({}, length=2**64 - 1)
    yield "length-past-the-end", safetensors({}, length=1000)
    yield "length-of-a-hundred-megabytes", safetensors(b"{" + b" " * 1000, length=200_000_000)
    yield "deep", safetensors(b'{"a":' * 5000 + b"1" + b"}" * 5000)
    yield "deep-lists", safetensors(b'{"a":' + b"[" * 50_000)
    yield (
        "name-twice",
        safetensors(
            b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
            b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
            b"x",
        ),
    )
    yield "overlap", safetensors({"a": entry(0, 2), "b": entry(1, 3)}, b"xyz")
    yield "hole", safetensors({"a": entry(0, 1), "b": entry(2, 3)}, b"xyz")
    yield "bytes-after", safetensors({"a": entry(0, 1)}, b"xPK\3\4")
    yield "bytes-missing", safetensors({"a": entry(0, 9)}, b"x")
    yield "backwards", safetensors({"a": entry(1, 0, shape=[1])}, b"x")
    yield "negative-offsets", safetensors({"a": entry(0, 1, data_offsets=[-1, 0])}, b"x")
    yield "offsets-that-overflow", safetensors({"a": entry(0, 1, data_offsets=[0, 2**64])}, b"x")
    yield "fractional-offsets", safetensors({"a": entry(0, 1, data_offsets=[0, 1.5])}, b"x")
    yield "truth-as-offsets", safetensors({"a": entry(0, 1, data_offsets=[False, True])}, b"x")
    yield "unknown-dtype", safetensors({"a": entry(0, 1, dtype="__import__")}, b"x")
    yield "shape-that-overflows", safetensors({"a": entry(0, 0, shape=[2**63, 2**63])})
    yield "negative-shape", safetensors({"a": entry(0, 1, shape=[-1, -1])}, b"x")
    yield "shape-of-a-thousand-digits", safetensors({"a": entry(0, 1, shape=[10**1000])}, b"x")
    yield (
        "shape-of-ten-thousand-digits",
        safetensors(
            b'{"a":{"dtype":"U8","shape":[' + b"1" * 10_000 + b'],"data_offsets":[0,1]}}', b"x"
        ),
    )
    yield (
        "not-a-number",
        safetensors(b'{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,1]}}', b"x"),
    )
    yield "metadata-of-numbers", safetensors({"__metadata__": {"a": 1}})
    yield "metadata-that-is-a-list", safetensors({"__metadata__": ["a"]})
    yield "list-as-header", safetensors(b"[]")
    yield "text-as-entry", safetensors({"a": "b"})
    yield "no-utf-8", safetensors(b'{"a\xff":1}')
    yield (
        "lone-surrogate",
        safetensors(b'{"\\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"),
    )
    yield "half-a-header", safetensors(b'{"a":{"dtype"')


def _odd_safetensors() -> Iterator[Attack]:
    one = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
    odd = safetensors({"a\r\nX: y\x1b[2J<script>": one}, b"x")
    yield Attack("T19-name-with-line-break", odd, (PRESERVED, DAMAGED))
    path = safetensors({"../../etc/passwd": one}, b"x")
    yield Attack("T19-name-that-is-a-path", path, (PRESERVED,))
    many = {"dtype": "U8", "shape": [1] * 1000, "data_offsets": [0, 1]}
    yield Attack("T19-thousand-dimensions", safetensors({"a": many}, b"x"), (PRESERVED, DAMAGED))

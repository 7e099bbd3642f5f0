from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import pytest
import torch

from migrate_ckpt.errors import UnreadableCheckpoint
from migrate_ckpt.formats.source import FileSource
from migrate_ckpt.formats.zip_reader import read_directory


@pytest.fixture
def saved(save) -> bytes:
    return save({"a": torch.arange(5.0), "b": torch.arange(3)}).read_bytes()


def directory_of(data: bytes, folder: Path) -> dict:
    path = folder / "x.zip"
    path.write_bytes(data)
    with FileSource(path) as source:
        return read_directory(source)


def zip_of(records: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in records:
            archive.writestr(name, data)
    return buffer.getvalue()


def test_records_are_where_zipfile_finds_them(saved, tmp_path):
    with zipfile.ZipFile(io.BytesIO(saved)) as theirs:
        expected = {name: theirs.read(name) for name in theirs.namelist()}

    entries = directory_of(saved, tmp_path)

    found = {
        name: saved[entry.data_offset : entry.data_offset + entry.size]
        for name, entry in entries.items()
    }
    assert found == expected


def test_a_zip_that_another_library_wrote_without_descriptors_is_read(tmp_path):
    entries = directory_of(zip_of([("root/data.pkl", b"x"), ("root/data/0", b"")]), tmp_path)

    assert [entry.size for entry in entries.values()] == [1, 0]


def patched(data: bytes, name: bytes, *, local: bool, offset: int, value: bytes) -> bytes:
    """The zip with a field of a record's local or central header overwritten."""
    fixed = 30 if local else 46
    position = data.find(name) if local else data.rfind(name)
    start = position - fixed + offset
    return data[:start] + value + data[start + len(value) :]


HOSTILE = {
    "cut off": lambda data: data[:-1],
    "something appended": lambda data: data + b"x",
    "something in front": lambda data: b"x" * 100 + data,
    "two directories": lambda data: data + data,
    "names that differ": lambda data: patched(
        data, b"old/data/0", local=True, offset=30, value=b"old/data/7"
    ),
    "compressed": lambda data: patched(
        data, b"old/data/0", local=False, offset=10, value=b"\x08\0"
    ),
    "encrypted": lambda data: patched(
        data, b"old/data/0", local=False, offset=8, value=b"\x09\x08"
    ),
    "two sizes": lambda data: patched(
        data, b"old/data/0", local=False, offset=20, value=b"\x01\0\0\0"
    ),
    "past the end": lambda data: patched(
        data, b"old/data/0", local=False, offset=42, value=b"\xff\xff\xff\x7f"
    ),
    "overlapping": lambda data: patched(
        data, b"old/data/0", local=False, offset=42, value=b"\0\0\0\0"
    ),
    "on another disk": lambda data: patched(
        data, b"old/data/0", local=False, offset=34, value=b"\1\0"
    ),
    "with a comment": lambda data: data[:-2] + struct.pack("<H", 1) + b"c",
}


@pytest.mark.parametrize("damage", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_two_readers_could_understand_differently_is_refused(saved, tmp_path, damage):
    with pytest.raises(UnreadableCheckpoint):
        directory_of(damage(saved), tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ["root/data.pkl", "root/DATA.PKL"],
        ["root/../data.pkl"],
        ["/root/data.pkl"],
        ["root//data.pkl"],
        ["root\\data.pkl/x"],
        ["root/da\nta.pkl"],
        ["data.pkl"],
    ],
)
def test_a_name_that_torch_does_not_write_is_refused(tmp_path, names):
    with pytest.raises(UnreadableCheckpoint):
        directory_of(zip_of([(name, b"x") for name in names]), tmp_path)


def test_bytes_hidden_between_two_records_are_refused(tmp_path):
    data = zip_of([("root/data.pkl", b"x"), ("root/version", b"3\n")])
    second = data.index(b"PK\3\4", 4)
    start = data.index(b"PK\1\2")
    hidden = b"h" * 100
    moved = bytearray(data[:second] + hidden + data[second:])
    entry = moved.index(b"PK\1\2", moved.index(b"PK\1\2") + 4)
    struct.pack_into("<I", moved, entry + 42, second + len(hidden))
    struct.pack_into("<I", moved, len(moved) - 6, start + len(hidden))

    with pytest.raises(UnreadableCheckpoint, match="hides bytes"):
        directory_of(bytes(moved), tmp_path)


def test_torchscript_is_called_by_its_name(tmp_path):
    data = zip_of([("m/data.pkl", b"x"), ("m/code/m.py", b"pass")], zipfile.ZIP_DEFLATED)

    with pytest.raises(UnreadableCheckpoint, match="TorchScript"):
        directory_of(data, tmp_path)

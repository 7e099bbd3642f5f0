"""What a file is, by its content: opened, or refused with a sentence that says it."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy
import pytest
import safetensors.torch
import torch

from migrate_ckpt import UnreadableCheckpoint, inspect_file
from migrate_ckpt.formats import open_container
from migrate_ckpt.formats.source import FileSource


def a_tar(*names: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name))
    return buffer.getvalue()


def a_tar_of_version_7(name: str) -> bytes:
    """A header without a signature, as tar wrote them until 1988."""
    header = bytearray(a_tar(name)[:512])
    header[257:] = bytes(255)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(1024)


def a_zip(*names: str, method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name in names:
            archive.writestr(name, b"content" * 100)
    return buffer.getvalue()


def a_package() -> bytes:
    buffer = io.BytesIO()
    with torch.package.PackageExporter(buffer) as exporter:
        exporter.save_pickle("model", "model.pkl", {"epoch": 3})
    return buffer.getvalue()


def arrays(save: Any) -> bytes:
    buffer = io.BytesIO()
    save(buffer, numpy.ones(3))
    return buffer.getvalue()


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"

# What it is, what the sentence must say of it, and of what to do.
KINDS: dict[str, tuple[bytes, str, str]] = {
    "TorchScript": (a_zip("m/data.pkl", "m/constants.pkl"), "TorchScript", "migrate the state"),
    "TorchScript, compressed": (
        a_zip("m/data.pkl", "m/code/a.py", method=zipfile.ZIP_DEFLATED),
        "TorchScript",
        "migrate the state",
    ),
    "torch.package": (a_package(), r"torch\.package", r"torch\.save"),
    "a tar": (a_tar("model.pth"), "tar archive", "Unpack it"),
    "a tar from before its signature": (a_tar_of_version_7("a.pth"), "tar archive", "Unpack it"),
    "torch's old tar": (a_tar("sys_info", "pickle", "tensors", "storages"), "tar", r"torch\.save"),
    "gzip": (gzip.compress(b"x"), "gzip", "gunzip"),
    "bzip2": (b"BZh91AY&SY", "bzip2", "bunzip2"),
    "xz": (b"\xfd7zXZ\0\0\4", "xz", "unxz"),
    "Zstandard": (b"\x28\xb5\x2f\xfd\x24", "Zstandard", "unzstd"),
    "7z": (b"7z\xbc\xaf\x27\x1c\0\4", "7z", "Unpack it"),
    "RAR": (b"Rar!\x1a\x07\1\0", "RAR", "Unpack it"),
    "GGUF": (b"GGUF\3\0\0\0", "GGUF", "made from"),
    "HDF5": (b"\x89HDF\r\n\x1a\n\0", "HDF5", "Convert"),
    "HDF5 behind a block": (bytes(2048) + b"\x89HDF\r\n\x1a\n\0", "HDF5", "Convert"),
    "zeros": (bytes(3000), "none that is known", "safetensors"),
    "a Git LFS pointer": (LFS.encode(), "Git LFS pointer", "git lfs pull"),
    "a bare pickle": (b"\x80\x04]\x94.", "bare pickle", r"torch\.save"),
    "a pickle of protocol 2": (b"\x80\x02}q\0.", "bare pickle", r"torch\.save"),
    **{
        f"a pickle of protocol {protocol}, {type(value).__name__}": (
            pickle.dumps(value, protocol), "bare pickle", r"torch\.save"
        )
        for protocol in (0, 1)
        for value in ({"a": 1}, [1], {}, OrderedDict(a=1), {1}, Path("a"))
    },
    "a web page": (b"\n<!DOCTYPE html><html>", "web page", "again"),
    "a web page without a type": (b"<HTML><body>", "web page", "again"),
    "a web page with a mark": (b"\xef\xbb\xbf<!doctype HTML>", "web page", "again"),
    "a web page of Latin-1": ("<html><title>Größe".encode("latin-1"), "web page", "again"),
    "a web page with a comment": (b"<!-- by\n <us> -->\n<html>", "web page", "again"),
    "a web page without a root": (b"<head><title>404</title>", "web page", "again"),
    "a web page as XML": (b'<?xml version="1.0"?>\n<!DOCTYPE html PUBLIC>', "web page", "again"),
    "comments without end": (b"<!---->" * 70 + b"x", "text", "safetensors"),
    "a page behind comments": (b"<!---->" * 60 + b"<html>", "web page", "again"),
    "text with a mark": (b"\xef\xbb\xbfhello", "text", "safetensors"),
    "text in brackets": (b"<header> is what it says", "text", "safetensors"),
    "JSON with a mark": (b"\xef\xbb\xbf{}", "JSON", "itself"),
    "XML": (b'<?xml version="1.0"?><Error>', "XML", "again"),
    "NumPy array": (arrays(numpy.save), "NumPy array", "tensor"),
    "NumPy archive": (arrays(numpy.savez), "NumPy archive", "tensors"),
    "NumPy archive, compressed": (arrays(numpy.savez_compressed), "NumPy archive", "tensors"),
    "an Office document": (a_zip("[Content_Types].xml", "word/a.xml"), "Office", "checkpoint"),
    "a zip of a checkpoint": (a_zip("model.pth"), "zip whose first record is 'model.pth'", "inside"),
    "an empty zip": (a_zip(), "empty zip", "again"),
    "JSON": (b'{"weight_map": {}}', "JSON", "itself"),
    "a JSON list": (b" [1, 2]", "JSON", "itself"),
    "text": ("Grüße\n".encode(), "text", "safetensors"),
    "long text": (("ö" * 1000).encode(), "text", "safetensors"),
    "random bytes": (bytes(range(255, 0, -1)) * 9, "none that is known", "safetensors"),
    "bytes that are no text": (b"\xff" * 600, "none that is known", "safetensors"),
    "one byte": (b"\x80", "none that is known", "safetensors"),
    "nothing": (b"", "empty", "again"),
}  # fmt: skip


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write_file(data: bytes, name: str = "model.pt") -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write_file


@pytest.mark.parametrize(("data", "what", "advice"), KINDS.values(), ids=KINDS.keys())
def test_the_refusal_says_what_the_file_is_and_what_to_do(write, data, what, advice):
    with pytest.raises(UnreadableCheckpoint) as raised:
        inspect_file(write(data))

    raised.match(what)
    raised.match(advice)


def test_a_hostile_name_in_a_zip_is_escaped(write):
    path = write(a_zip("evil\n\x1b[31m.pth"))

    with pytest.raises(UnreadableCheckpoint) as raised:
        inspect_file(path)

    assert str(raised.value).isprintable()


def test_the_beginning_of_a_checkpoint_is_not_taken_for_another_zip(save, write):
    data = save({"a": torch.ones(100)}).read_bytes()

    for length in (5, 10, 35):
        with pytest.raises(UnreadableCheckpoint) as raised:
            inspect_file(write(data[:length], "cut.pt"))
        assert "first record" not in str(raised.value)


def test_a_damaged_checkpoint_is_not_taken_for_another_zip(save):
    path = save({"a": torch.ones(100)})
    path.write_bytes(path.read_bytes() + b"more")

    with pytest.raises(UnreadableCheckpoint) as raised:
        inspect_file(path)

    assert "first record" not in str(raised.value)


def zip_of_torch(path: Path) -> None:
    torch.save({"a": torch.ones(2)}, path)


def stream_of_torch(path: Path) -> None:
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)


def file_of_safetensors(path: Path) -> None:
    safetensors.torch.save_file({"a": torch.ones(2)}, path)


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors", "a.pth.tar", "a.bin", "a.gz", "a"])
@pytest.mark.parametrize(
    ("save_as", "expected"),
    [
        (zip_of_torch, "torch"),
        (stream_of_torch, "torch-legacy"),
        (file_of_safetensors, "safetensors"),
    ],
    ids=["zip", "stream", "safetensors"],
)
def test_the_name_of_a_file_does_not_count(tmp_path, save_as, expected, name):
    path = tmp_path / name
    save_as(path)

    with FileSource(path) as source:
        assert open_container(source).format == expected

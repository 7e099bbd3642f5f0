"""Containers of bytes: one module each for reading and writing what torch and its relatives save."""

from __future__ import annotations

from migrate_ckpt.errors import UnreadableCheckpoint
from migrate_ckpt.formats.container import Container
from migrate_ckpt.formats.recognition import START_BYTES, describe, describe_zip
from migrate_ckpt.formats.safetensors import Safetensors
from migrate_ckpt.formats.safetensors_header import is_safetensors
from migrate_ckpt.formats.source import FileSource
from migrate_ckpt.formats.torch_legacy import TorchLegacy, is_torch_legacy
from migrate_ckpt.formats.torch_zip import TorchZip


def open_container(source: FileSource) -> Container:
    """Open a file as what its content says it is; its name does not count.

    Raises:
        UnreadableCheckpoint: It is of no format that is read here, or damaged; says what it is, where that is known.
    """
    start = source.read(0, START_BYTES)
    if start.startswith(b"PK\3\4"):
        return _open_zip(source)
    if is_torch_legacy(start):
        return TorchLegacy(source)
    if is_safetensors(start):
        return Safetensors(source)
    raise UnreadableCheckpoint(describe(source))


def may_be_checkpoint(source: FileSource) -> bool:
    """Whether a file is meant as one of the formats read here, even if it is damaged."""
    start = source.read(0, START_BYTES)
    if start.startswith(b"PK\3\4"):
        return _may_be_torch_zip(source, start)
    return is_torch_legacy(start) or is_safetensors(start)


def _may_be_torch_zip(source: FileSource, start: bytes) -> bool:
    # Torch writes this record first, so that it is seen in a file that ends too early as well.
    if b"/data.pkl" in start:
        return True
    try:
        TorchZip(source)
    except UnreadableCheckpoint:
        return False
    return True


def _open_zip(source: FileSource) -> TorchZip:
    try:
        return TorchZip(source)
    except UnreadableCheckpoint as error:
        description = describe_zip(source)
        if description is None:
            raise
        raise UnreadableCheckpoint(description) from error

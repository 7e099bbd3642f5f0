"""Containers of bytes: one module each for reading and writing what torch and its relatives save."""

from __future__ import annotations

from migrate_ckpt.errors import UnreadableCheckpoint
from migrate_ckpt.formats.container import Container
from migrate_ckpt.formats.source import FileSource
from migrate_ckpt.formats.torch_zip import TorchZip


def open_container(source: FileSource) -> Container:
    """Open a file as what its first bytes say it is; its name does not count.

    Raises:
        UnreadableCheckpoint: It is of no format that is read here, or damaged.
    """
    start = source.read(0, 4)
    if start == b"PK\3\4":
        return TorchZip(source)
    if not start:
        raise UnreadableCheckpoint("the file is empty")
    raise UnreadableCheckpoint(
        "the file is no zip as torch.save writes it since 1.6. Older files and other formats are not read yet: "
        "load it in a process that trusts it, and save it again"
    )

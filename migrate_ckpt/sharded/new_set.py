"""The files that a sharded checkpoint becomes, laid out and not written yet; and how they are written."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from migrate_ckpt.formats.pieces import Pieces, Range, replace_file
from migrate_ckpt.formats.source import FileSource
from migrate_ckpt.report import Report
from migrate_ckpt.sharded.files import TarFiles


@dataclass(frozen=True, slots=True)
class NewFile:
    """One file.

    Attributes:
        name: Its name.
        pieces: What it consists of.
        source: What their ranges are of.
        is_as_it_was: Whether it is a file of the old set, unchanged; in place under its name, too.
    """

    name: str
    pieces: Pieces
    source: FileSource | None
    is_as_it_was: bool = False


@dataclass
class NewSet:
    """All files, the one that names the others last; and what the run did. A context manager.

    Attributes:
        report: The report; its `target` says which files are written.
        files: The files.
        old_names: Those of the old set, which are not needed any more if they are not among the files.
        held: What the pieces need to be open.
        kept: What has the memory that new bytes are written from.
    """

    report: Report
    files: tuple[NewFile, ...]
    old_names: Collection[str]
    held: list[Any] = field(default_factory=list)
    kept: Any = None

    def __enter__(self) -> NewSet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for each in self.held:
            each.close()


def with_facts(
    report: Report, source: Mapping[str, Any], parts: Sequence[NewFile], *, bytes_verified: bool
) -> Report:
    """Add to a report what it says of the old set, and of the new one: of all its files but the one that names them."""
    target = {
        "format": source["format"],
        "size": sum(file.pieces.size for file in parts),
        "shards": len(parts),
        "written": [file.name for file in parts if not file.is_as_it_was],
    }
    return replace(report, source=dict(source), target=target, bytes_verified=bytes_verified)


def write_set(new: NewSet, folder: Path, old_names: Collection[str], *, is_in_place: bool) -> None:
    """Write the files, and take an old set's away once the last file names the new ones.

    In the folder of the old set what did not change is there. What was not there before goes again if writing fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    *parts, main = new.files
    _write_parts([file for file in parts if not (is_in_place and file.is_as_it_was)], folder)
    _write(main, folder)
    remove(folder, set(old_names) - {file.name for file in new.files})


def remove(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)


def _write_parts(files: Iterable[NewFile], folder: Path) -> None:
    """Write files that nothing names yet."""
    made: list[Path] = []
    try:
        for file in files:
            is_new = not os.path.lexists(folder / file.name)
            _write(file, folder)
            if is_new:
                made.append(folder / file.name)
    except BaseException:
        # Else a run that was interrupted would be told that they exist already when it is tried again.
        for path in made:
            path.unlink(missing_ok=True)
        raise


def _write(file: NewFile, folder: Path) -> None:
    # Links lead to what others use as well: Hugging Face's cache has one file for the same shard of all revisions.
    replace_file(folder / file.name, file.pieces, file.source, follow_links=False)


def lay_out_tar(new: NewSet, old: TarFiles) -> Pieces:
    """The pieces of a tar of the files, and of what else was in the old tar; its ranges are of the old one."""
    pieces = Pieces()
    names = {file.name for file in new.files}
    for name in old.sizes():
        if name not in names and name not in new.old_names:
            offset, size = old.range_of(name)
            content = Pieces()
            content.add_range(offset, size)
            _add_member(pieces, old.folder, name, content, 0)
    for file in new.files:
        start = getattr(file.source, "start", 0)
        _add_member(pieces, old.folder, file.name, file.pieces, start)
    pieces.add_bytes(bytes(2 * tarfile.BLOCKSIZE))
    return pieces


def _add_member(pieces: Pieces, folder: str, name: str, content: Pieces, start: int) -> None:
    """Add a header, the content, whose ranges begin at a place of the tar, and what fills the last block."""
    member = tarfile.TarInfo(f"{folder}/{name}" if folder else name)
    member.size = content.size
    pieces.add_bytes(member.tobuf(tarfile.PAX_FORMAT))
    for piece in content:
        if isinstance(piece, Range):
            pieces.add_range(start + piece.offset, piece.count)
        else:
            pieces.add_bytes(piece)
    pieces.add_bytes(bytes(-content.size % tarfile.BLOCKSIZE))


def in_memory(pieces: Iterable[Any], source: FileSource | None) -> Pieces:
    """The same pieces, with the bytes of the ranges in place of them."""
    made = Pieces()
    for piece in pieces:
        if isinstance(piece, Range):
            assert source is not None, "a range needs the source it is a range of"
            made.add_bytes(source.read(piece.offset, piece.count))
        else:
            made.add_bytes(piece)
    return made

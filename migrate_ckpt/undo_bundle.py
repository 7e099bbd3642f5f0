"""The undo bundle: what of a file its migrated one does not have, so that both together give the file back.

A migrated file is made of ranges of its source and of new bytes. The bundle has the rest of the source: its metadata,
and the tensors that were changed or dropped. Its form is one line of ASCII, `migrate-ckpt undo 1 N`, then N bytes of
JSON, then the rest itself:

    {"original": {"size": ..., "sha256": ...}, "migrated": {"size": ..., "sha256": ...},
     "ran": [...], "pieces": [["migrated" or "kept", offset, count], ...]}

The pieces in their order are the original file; an offset is one in the migrated file, or among the bytes after the
JSON. All numbers are of bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from migrate_ckpt.errors import UndoRefused
from migrate_ckpt.formats.pieces import (
    Pieces,
    Range,
    copy_range,
    replace_file,
    replace_file_by,
)
from migrate_ckpt.formats.source import FileSource, sha256_of, update_digest

_MAGIC = b"migrate-ckpt undo 1 "
_MAX_LINE_BYTES = 64
_MAX_HEADER_BYTES = 1 << 28


def bundle_path(migrated: str | os.PathLike[str]) -> Path:
    """Where the bundle of a migrated file stands: beside it, with `.undo` after its name."""
    path = Path(migrated)
    return path.with_name(f"{path.name}.undo")


def write_bundle(path: Path, pieces: Pieces, source: FileSource, ran: Sequence[str]) -> None:
    """Write the bundle of a source and the pieces of what was made of it; it is there as a whole or not at all.

    Raises:
        OSError: It cannot be written.
    """
    listed, kept = _turned_round(pieces, source.size)
    header = json.dumps(
        {
            "original": {"size": source.size, "sha256": sha256_of(source)},
            "migrated": {"size": pieces.size, "sha256": _sha256_of_pieces(pieces, source)},
            "ran": list(ran),
            "pieces": listed,
        }
    ).encode("ascii")
    bundle = Pieces()
    bundle.add_bytes(_MAGIC + f"{len(header)}\n".encode("ascii") + header)
    for piece in kept:
        bundle.add_range(piece.offset, piece.count)
    replace_file(path, bundle, source)


def _turned_round(pieces: Pieces, size: int) -> tuple[list[tuple[str, int, int]], list[Range]]:
    """Return the source as pieces of the migrated file and of what is kept, and the ranges that are kept."""
    in_migrated: list[tuple[int, int, int]] = []
    position = 0
    for piece in pieces:
        count = piece.count if isinstance(piece, Range) else len(piece)
        if isinstance(piece, Range):
            in_migrated.append((piece.offset, position, count))
        position += count
    listed: list[tuple[str, int, int]] = []
    kept: list[Range] = []
    reached = kept_bytes = 0
    # What lies behind the last range is kept, as is what lies between two.
    for offset, at, count in [*sorted(in_migrated), (size, 0, 0)]:
        if offset > reached:
            listed.append(("kept", kept_bytes, offset - reached))
            kept.append(Range(reached, offset - reached))
            kept_bytes += offset - reached
            reached = offset
        # A range that stands there twice counts once.
        known = reached - offset
        if count > known:
            listed.append(("migrated", at + known, count - known))
            reached += count - known
    return listed, kept


def _sha256_of_pieces(pieces: Pieces, source: FileSource) -> str:
    """Return the SHA-256, in hexadecimal, of the file that pieces make."""
    digest = hashlib.sha256()
    for piece in pieces:
        if isinstance(piece, Range):
            update_digest(digest, source, piece.offset, piece.count)
        else:
            digest.update(piece)
    return digest.hexdigest()


class UndoBundle:
    """A bundle, in a file that its owner holds open.

    Attributes:
        path: Where it stands.
        ran: The migrations that restoring takes back, in the order in which they ran.
    """

    def __init__(self, source: FileSource) -> None:
        """Read the header of a bundle.

        Raises:
            UndoRefused: It is no bundle.
        """
        self._source = source
        self.path = source.path
        try:
            self._read_header()
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise UndoRefused(
                f"{self.path} is no undo bundle, or a damaged one.", path=self.path
            ) from error

    def ran_up_to(self, name: str) -> tuple[str, ...]:
        """Return the migrations of the run up to one of them; none if it is not of the run."""
        return self.ran[: self.ran.index(name) + 1] if name in self.ran else ()

    def is_of(self, original: FileSource) -> bool:
        """Tell whether a file is the one that it puts back."""
        return original.size == self._original[0] and sha256_of(original) == self._original[1]

    def is_of_migrated(self, migrated: FileSource) -> bool:
        """Tell whether a file is the one that it was written with."""
        return migrated.size == self._migrated[0] and sha256_of(migrated) == self._migrated[1]

    def restore(self, migrated: FileSource, target: Path) -> None:
        """Write the original file, from the bundle and the file that it was written with (`is_of_migrated`).

        Raises:
            UndoRefused: The bundle is damaged. Nothing is written then.
            OSError: The target cannot be written.
        """
        places = {"kept": (self._source, self._begin), "migrated": (migrated, 0)}
        ranges = [
            (places[kind][0], Range(places[kind][1] + offset, count))
            for kind, offset, count in self._pieces
        ]
        digest = hashlib.sha256()
        for source, piece in ranges:
            update_digest(digest, source, piece.offset, piece.count)
        size = sum(piece.count for _, piece in ranges)
        if (size, digest.hexdigest()) != self._original:
            raise UndoRefused(f"{self.path} is damaged.", path=self.path)

        def write(descriptor: int) -> None:
            for source, piece in ranges:
                copy_range(source, piece, descriptor)

        replace_file_by(target, write)

    def _read_header(self) -> None:
        line = self._source.read(0, _MAX_LINE_BYTES).partition(b"\n")[0]
        if not line.startswith(_MAGIC):
            raise ValueError("another kind of file")
        count = int(line.removeprefix(_MAGIC))
        if not 0 <= count <= min(_MAX_HEADER_BYTES, self._source.size):
            raise ValueError("a header longer than the file")
        self._begin = len(line) + 1 + count
        header = json.loads(self._source.read(len(line) + 1, count))
        self._original = _size_and_sha256(header["original"])
        self._migrated = _size_and_sha256(header["migrated"])
        self.ran = tuple(map(str, header["ran"]))
        sizes = {"kept": self._source.size - self._begin, "migrated": self._migrated[0]}
        self._pieces = [(kind, int(offset), int(count)) for kind, offset, count in header["pieces"]]
        if any(min(o, n) < 0 or o + n > sizes[kind] for kind, o, n in self._pieces):
            raise ValueError("a piece that is not there")


def _size_and_sha256(file: Mapping[str, Any]) -> tuple[int, str]:
    return int(file["size"]), str(file["sha256"])

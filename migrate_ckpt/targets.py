"""What may be written where: a file that is there already is not replaced by accident."""

from __future__ import annotations

import os
from pathlib import Path

from migrate_ckpt.errors import TargetExists, UndoRefused
from migrate_ckpt.formats.source import FileSource
from migrate_ckpt.undo_bundle import UndoBundle


def check_target(
    source: str | os.PathLike[str], target: str | os.PathLike[str], *, force: bool
) -> Path:
    """Return the path of a target.

    Raises:
        TargetExists: Another file is there, and `force` is not set.
    """
    path = Path(target)
    if path.exists() and not force and not is_same_file(source, path):
        raise TargetExists(
            f"{path} exists already. Choose another target, or replace it with force.", path=path
        )
    return path


def refuse_other_bundle(bundle: Path, source: str | os.PathLike[str]) -> None:
    """Refuse to replace a bundle, unless a run of the same source that was ended before its target was left it."""
    if not bundle.exists():
        return
    try:
        with FileSource(bundle) as held, FileSource(source) as original:
            is_of_source = UndoBundle(held).is_of(original)
    except UndoRefused:
        is_of_source = False
    if not is_of_source:
        raise TargetExists(
            f"{bundle} exists already, and puts another file back. Keep it elsewhere, or replace it with force.",
            path=bundle,
        )


def is_same_file(source: str | os.PathLike[str], path: Path) -> bool:
    """Tell whether a path is that of the source, under whatever name."""
    return path.exists() and os.path.samefile(source, path)

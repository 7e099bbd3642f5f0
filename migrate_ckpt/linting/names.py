"""What is wrong with how the files of a folder are called: MC003 and MC004."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from migrate_ckpt.folder import declares_natural_order, natural_key
from migrate_ckpt.linting.findings import Finding

# All of a date counts as the number.
_NUMBER = re.compile(r"[0-9]+(?:[_-][0-9]+)*")


def look_at_names(
    folder: Path, paths: Sequence[Path], *, squashed: Collection[Path] = ()
) -> Iterator[Finding]:
    """Compare the names of a folder's migrations with each other. One that is squashed comes just after another."""
    yield from _numbers_twice([path for path in paths if path not in squashed])
    if not declares_natural_order(folder):
        yield from _order_traps(paths)


def _numbers_twice(paths: Sequence[Path]) -> Iterator[Finding]:
    first: dict[tuple[int, ...], Path] = {}
    for path in paths:
        found = _NUMBER.match(path.stem)
        if found is None:
            continue
        number = tuple(int(part) for part in re.split("[_-]", found[0]))
        other = first.setdefault(number, path)
        if other != path:
            message = (
                f"has the number of {other.name}: which comes first is decided by the rest of the name, and whoever "
                "added it did not see the other. Give it the next free number"
            )
            yield Finding(path, 1, "MC003", message)


def _order_traps(paths: Sequence[Path]) -> Iterator[Finding]:
    stems = sorted(path.stem for path in paths)
    by_number = sorted(stems, key=natural_key)
    for path in sorted(paths, key=lambda path: path.stem):
        place = stems.index(path.stem)
        if by_number[place] != path.stem:
            message = (
                f"is number {place + 1} by the alphabet and {by_number.index(path.stem) + 1} by its number, so that "
                "the folder is refused. Give all numbers the same width (0002_y, 0010_x)"
            )
            yield Finding(path, 1, "MC004", message)

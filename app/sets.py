"""The sets of migrations that are served: a copy of the folder, replaced by another when the folder changes.

Requests hold the copy that was current when they came, so a run loads the code it was begun with,
however long its upload took. A folder that cannot be read leaves the sets as they are.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from migrate_ckpt import FolderError, MigrationSet, UnknownSet, read_sets

logger = logging.getLogger(__name__)

# A folder that is being written to is waited for so long at the start.
START_ATTEMPTS = 10
ATTEMPT_SECONDS = 0.2

# What is in a folder, and when each thing in it changed last.
Stamp = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class LoadedSets:
    """The sets of one copy of the folder."""

    folder: Path
    sets: Mapping[str, MigrationSet]

    def find(self, name: str) -> MigrationSet:
        """Return the set of this name.

        Raises:
            UnknownSet: there is none.
        """
        if name not in self.sets:
            raise UnknownSet(
                f"There is no set {name!r}; there is: {', '.join(self.sets)}.",
                path=self.folder,
                name=name,
                names=tuple(self.sets),
            )
        return self.sets[name]

    def __str__(self) -> str:
        count = sum(len(migration_set.files) for migration_set in self.sets.values())
        return f"{count} migrations in {len(self.sets)} sets"

    def digests(self) -> dict[str, str]:
        return {name: migration_set.digest for name, migration_set in self.sets.items()}


@dataclass(slots=True)
class _Copy:
    loaded: LoadedSets
    holders: int = 0


class MigrationSets:
    """What is served of a folder; `problem` says why a change of it is not."""

    def __init__(self, source: Path, copies_folder: Path) -> None:
        """Copy and read the folder for the first time.

        Raises:
            FolderError: it cannot be read, or it changes all the time.
        """
        self.problem: str | None = None
        self._source = source
        self._copies_folder = copies_folder
        self._lock = threading.Lock()
        self._replaced: list[_Copy] = []
        self._stamp, loaded = _load_settled(source, copies_folder)
        self._last_look = self._stamp
        self._current = _Copy(loaded)

    @property
    def current(self) -> LoadedSets:
        return self._current.loaded

    @contextlib.contextmanager
    def hold(self) -> Iterator[LoadedSets]:
        """Give out the current sets; their copy of the folder stays as long as the block lasts."""
        with self._lock:
            copy = self._current
            copy.holders += 1
        try:
            yield copy.loaded
        finally:
            with self._lock:
                copy.holders -= 1

    def reload(self) -> None:
        """Take up a change of the folder, once it has looked the same twice."""
        self._remove_unused()
        stamp = _stamp(self._source)
        has_settled, self._last_look = stamp == self._last_look, stamp
        if not has_settled:
            return
        if stamp == self._stamp:
            self.problem = None
            return
        try:
            loaded = _load(self._source, self._copies_folder)
        except FolderError as error:
            self._note_problem(f"{error} The migrations before the change are still served.")
            return
        if _stamp(self._source) == stamp:
            self._replace(loaded, stamp)
        else:
            shutil.rmtree(loaded.folder)

    def _replace(self, loaded: LoadedSets, stamp: Stamp) -> None:
        with self._lock:
            self._replaced.append(self._current)
            self._current = _Copy(loaded)
        self._stamp = stamp
        self.problem = None
        logger.info("the migrations have changed: %s", loaded)

    def _note_problem(self, problem: str) -> None:
        if problem != self.problem:
            logger.error(problem)
        self.problem = problem

    def _remove_unused(self) -> None:
        with self._lock:
            unused = [copy for copy in self._replaced if not copy.holders]
            self._replaced = [copy for copy in self._replaced if copy.holders]
        for copy in unused:
            shutil.rmtree(copy.loaded.folder, ignore_errors=True)


def _load_settled(source: Path, copies_folder: Path) -> tuple[Stamp, LoadedSets]:
    for _ in range(START_ATTEMPTS):
        stamp = _stamp(source)
        loaded = _load(source, copies_folder)
        if _stamp(source) == stamp:
            return stamp, loaded
        shutil.rmtree(loaded.folder)
        time.sleep(ATTEMPT_SECONDS)
    raise FolderError(f"The migrations in {source} change while they are read.", path=source)


def _load(source: Path, copies_folder: Path) -> LoadedSets:
    """Copy the folder and read the copy.

    Raises:
        FolderError: it cannot be read; no copy is left then.
    """
    folder = Path(tempfile.mkdtemp(prefix="sets-", dir=copies_folder))
    try:
        _copy(source, folder)
        # For the runs, which need not be who we are.
        folder.chmod(0o755)
        return LoadedSets(folder, read_sets(folder))
    except (FolderError, OSError) as error:
        shutil.rmtree(folder)
        if isinstance(error, FolderError):
            raise
        message = f"The migrations cannot be read: {error.strerror}: {error.filename!r}."
        raise FolderError(message, path=source) from error


def _walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield each folder that belongs to the migrations with the names of its files, links followed."""
    # A mounted ConfigMap keeps its versions beside the links to them, under names with a dot.
    for path, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(n for n in folders if n[0] != "." and n != "__pycache__")
        yield Path(path), sorted(n for n in files if n[0] != "." and not n.endswith(".pyc"))


def _stamp(folder: Path) -> Stamp:
    stamps = []
    for path, names in _walk(folder):
        for name in (".", *names):
            with contextlib.suppress(OSError):
                found = os.stat(path / name)
                stamps.append((str(path / name), found.st_ino, found.st_size, found.st_ctime_ns))
    return tuple(stamps)


def _copy(source: Path, target: Path) -> None:
    # To find out that there is no folder: a walk through none finds nothing.
    os.listdir(source)
    for path, names in _walk(source):
        place = target / path.relative_to(source)
        place.mkdir(exist_ok=True)
        for name in names:
            shutil.copyfile(path / name, place / name)

"""Tries a plan out on a file, in memory, to know the changes that each of its steps would make. Nothing is written.

Where every migration to run declares its operations, tensors without bytes do: no tensor data is read. Others are run
on the mapped file, of which the system reads what they look at.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from migrate_ckpt.changes import MAX_CHANGES, Change, Preview, find_changes
from migrate_ckpt.errors import ManifestNotMet, MigrationFailed
from migrate_ckpt.history import ckpt_migration_key, records_key
from migrate_ckpt.migration import CkptType, Migration
from migrate_ckpt.outline import OutlineEntry, outline
from migrate_ckpt.runner import run_plan
from migrate_ckpt.verifying import refuse_unmet

if TYPE_CHECKING:
    from migrate_ckpt.formats.container import Container
    from migrate_ckpt.manifest import Manifest
    from migrate_ckpt.plan import Plan
    from migrate_ckpt.report import Report

MAX_PREVIEW_ENTRIES = 1_000_000


class Readable(Protocol):
    """What migrations are tried out on: a checkpoint that can be read more than once."""

    def read(self, builder_of: Callable[[Container], Any]) -> CkptType:
        """Return the checkpoint, with tensors that a builder makes."""

    def written(self) -> set[str]:
        """Return the keys of the storages that were written to in memory."""


class OfContainer:
    """One file."""

    def __init__(self, container: Container) -> None:
        self._container = container

    def read(self, builder_of: Callable[[Container], Any]) -> Any:
        return self._container.read(builder_of(self._container)).value

    def written(self) -> set[str]:
        return self._container.mapped.changed(self._container.storages)


def preview_plan(
    readable: Readable,
    plan: Plan,
    migrations: Sequence[Migration],
    *,
    max_changes: int | None = MAX_CHANGES,
    manifest: Manifest | None = None,
) -> Plan:
    """The plan with a preview in each step that will run. A migration that fails leaves those after it unknown.

    If the result is not what a manifest says, that is an error of the last step.
    """
    to_run = {name: Preview() for name in plan.to_run}
    if to_run:
        to_run.update(_try_out(readable, plan, migrations, max_changes, manifest))
    steps = tuple(replace(step, preview=to_run.get(step.name)) for step in plan.steps)
    return replace(plan, steps=steps)


def _try_out(
    readable: Readable,
    plan: Plan,
    migrations: Sequence[Migration],
    max_changes: int | None,
    manifest: Manifest | None,
) -> dict[str, Preview]:
    # Loading torch takes a second, which a plan without changes need not wait.
    from migrate_ckpt.formats.tensors import MappedTensors, MetaTensors

    called = [migration for migration in migrations if migration.name in plan.to_run]
    if all(migration.operations is not None for migration in called):
        watch = _Watch(readable, manifest, is_mapped=False)
        error = watch.run(readable.read(MetaTensors), plan, called)
        if error is None:
            return watch.previews(max_changes)
    # What failed without bytes may have wanted to see some.
    watch = _Watch(readable, manifest, is_mapped=True)
    error = watch.run(readable.read(MappedTensors), plan, called)
    previews = watch.previews(max_changes)
    if error is not None:
        facts = {key: value for key, value in error.to_dict().items() if key != "report"}
        name = error.name if isinstance(error, MigrationFailed) else plan.to_run[-1]
        previews[name] = replace(previews.get(name, Preview()), error=facts)
    return previews


class _Watch:
    """Follows a run from step to step."""

    def __init__(self, readable: Readable, manifest: Manifest | None, *, is_mapped: bool) -> None:
        self._readable = readable
        self._manifest = manifest
        self._is_mapped = is_mapped
        self._changes: dict[str, list[Change]] = {}
        self._warnings: dict[str, tuple[str, ...]] = {}
        self._known_warnings = 0
        self._last: list[OutlineEntry] = []
        # A storage's identity is only good while it lives: until the next outline is made.
        self._alive: list[Any] = []
        self._written: set[str] = set()

    def run(
        self, ckpt: CkptType, plan: Plan, migrations: Sequence[Migration]
    ) -> MigrationFailed | ManifestNotMet | None:
        self._last = self._outline(ckpt)
        self._known_warnings = len(plan.warnings)
        try:
            ckpt, report = run_plan(ckpt, plan, migrations, after_step=self._after_step)
            refuse_unmet(self._manifest, ckpt, report)
        except (MigrationFailed, ManifestNotMet) as error:
            return error
        return None

    def previews(self, max_changes: int | None) -> dict[str, Preview]:
        return {
            name: Preview.of(changes, warnings=self._warnings[name], max_changes=max_changes)
            for name, changes in self._changes.items()
        }

    def _after_step(self, name: str, ckpt: CkptType, report: Report) -> None:
        self._warnings[name] = report.warnings[self._known_warnings :]
        self._known_warnings = len(report.warnings)
        now = self._outline(ckpt)
        self._changes[name] = find_changes(self._last, now)
        self._last = now

    def _outline(self, ckpt: CkptType) -> list[OutlineEntry]:
        before, self._alive = self._alive, []
        if self._is_mapped:
            self._written = self._readable.written()
        entries = outline(ckpt, max_entries=MAX_PREVIEW_ENTRIES, identify=self._identify)
        del before
        return [
            entry
            for entry in entries
            if entry.path[:1] not in ((ckpt_migration_key,), (records_key,))
        ]

    def _identify(self, tensor: Any) -> Hashable:
        from migrate_ckpt.formats.tensors import HANDLE

        try:
            storage = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):
            # A sparse one, or of another kind that is not laid out in one storage.
            self._alive.append(tensor)
            return id(tensor)
        self._alive.append(storage)
        handle = getattr(storage, HANDLE, None)
        is_written = handle is not None and handle.key in self._written
        version = 0 if tensor.is_inference() else tensor._version
        layout = (tensor.storage_offset(), tensor.stride())
        return storage._cdata, layout, version, is_written

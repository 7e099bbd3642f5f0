"""Takes migrations back in memory: the last one first, each by its `revert` or by what its operations declare.

What comes out is proved: the migrations are run over it, and must give the checkpoint that came in. So a step that
has given something up since (rows that were added and then trained) is found before anything is written. An author's
`revert` may be less exact than that; then the difference is a warning.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from migrate_ckpt.comparison import find_unlike
from migrate_ckpt.errors import MigrationFailed, OperationError, RequirementsNotMet, UndoRefused
from migrate_ckpt.history import is_flat_state_dict, read_history, remove_history, write_history
from migrate_ckpt.migration import CkptType, Migration
from migrate_ckpt.operations.paths import show_path
from migrate_ckpt.plan import Plan, Step
from migrate_ckpt.runner import run_plan
from migrate_ckpt.undo_bundle import bundle_path

if TYPE_CHECKING:
    from migrate_ckpt.formats.container import Container
    from migrate_ckpt.operations.operation import Operation


def names_to_revert(plan: Plan, history: Sequence[str], to: str | None, path: Path) -> list[str]:
    """Return the applied migrations of a set that come after one of them, in their order.

    Args:
        plan: The set's plan for the file.
        history: The names in the file's history, in their order.
        to: The last migration that stays; None is none.
        path: The file, for messages.

    Raises:
        UndoRefused: `to` was not applied; or what would be taken back was edited since, or is not in the folder.
    """
    order = [step.name for step in plan.steps if step.state != "unknown"]
    if to is not None and to not in (*plan.applied, *plan.changed):
        applied = ", ".join(plan.applied) or "none"
        raise UndoRefused(
            f"{to} is none of the migrations of {path}. Those of this set are: {applied}.",
            path=path,
        )
    after = order[order.index(to) + 1 :] if to is not None else order
    changed = [name for name in after if name in plan.changed]
    if changed:
        raise UndoRefused(
            f"{', '.join(changed)} was edited since it ran on {path}, so nobody knows what it did. Use the folder of "
            "then.",
            path=path,
        )
    behind = history[history.index(to) + 1 :] if to in history else history
    unknown = [name for name in plan.unknown if name in behind]
    if unknown:
        raise UndoRefused(
            f"{', '.join(unknown)} ran on {path}, and is not in the folder. Use the folder of then.",
            path=path,
        )
    return [name for name in after if name in plan.applied]


class ReverseRun:
    """Some migrations of a set, to be taken back from a file.

    Attributes:
        warnings: What a reader should know, a sentence each.
    """

    def __init__(
        self, plan: Plan, names: Sequence[str], migrations: Iterable[Migration], path: Path
    ) -> None:
        """Look at what the migrations declare.

        Raises:
            UndoRefused: One of them gives something up. No checkpoint was looked at.
        """
        by_name = {migration.name: migration for migration in migrations}
        self._path = path
        self._plan = plan
        self._no_bundle = "An undo bundle, which `run --keep-undo` writes, would put back anything."
        if bundle_path(path).exists():
            self._no_bundle = f"{bundle_path(path)} is not of the file as it is now."
        self._migrations = [by_name[name] for name in names]
        self._inverses: Mapping[str, Sequence[Operation]] = {
            m.name: self._inverse(m) for m in self._migrations if m.revert is None
        }
        self.warnings: tuple[str, ...] = ()

    def revert(self, ckpt: CkptType) -> CkptType:
        """Take the migrations back from a checkpoint that the caller has made its own, for it is changed.

        Raises:
            UndoRefused: One cannot be taken back from this checkpoint.
        """
        found = read_history(ckpt)
        # The plan knows those whose files were renamed by their new names.
        order = [step.name for step in self._plan.steps if step.state != "unknown"]
        history = found.with_renamed(self._plan.renamed, set_name=self._plan.set_name, names=order)
        was_flat = is_flat_state_dict(ckpt)
        for migration in reversed(self._migrations):
            ckpt = self._take_back(migration, ckpt)
        names = [name for m in self._migrations for name in (m.name, *m.replaces)]
        left = history.without(names, set_name=self._plan.set_name)
        if not left.records:
            remove_history(ckpt)
            return ckpt
        is_flat = is_flat_state_dict(ckpt)
        in_metadata = is_flat if is_flat != was_flat else history.place == "metadata"
        return write_history(ckpt, left, in_metadata=in_metadata)

    def run_again(self, reverted: CkptType) -> CkptType:
        """Run the migrations over what they were taken back from; it is changed.

        Raises:
            UndoRefused: They do not run on it.
        """
        names = {migration.name for migration in self._migrations}
        steps = [
            Step(step.name, step.title, step.digest, step.state, will_run=step.name in names)
            for step in self._plan.steps
        ]
        plan = Plan(self._plan.set_name, self._plan.set_digest, "run-missed", None, tuple(steps))
        try:
            ckpt, _ = run_plan(reverted, plan, self._migrations)
        except (MigrationFailed, RequirementsNotMet) as error:
            raise self._refusal(f"what it would be does not migrate again: {error}") from error
        return ckpt

    def judge(self, made: CkptType, came_in: CkptType, container: Container) -> None:
        """Compare what the migrations make again with what came in; both are of one container.

        Raises:
            UndoRefused: It is something else, and no author answers for it.
        """
        written = container.mapped.changed(container.storages)
        unlike = find_unlike(made, came_in, written=written)
        if not unlike:
            return
        more = f" and {len(unlike) - 3} more" if len(unlike) > 3 else ""
        shown = ", ".join(map(show_path, unlike[:3])) + more
        sentence = f"migrated again, it would differ from this file at {shown}"
        authored = [m.name for m in self._migrations if m.revert is not None]
        if not authored:
            raise self._refusal(f"{sentence}, so something would be lost")
        text = f"By the `revert` of {', '.join(authored)}: {sentence}."
        self.warnings = (*self.warnings, text)

    def _inverse(self, migration: Migration) -> list[Operation]:
        if migration.operations is None:
            raise self._refusal(
                f"{migration.name} is a function, and has no `revert(ckpt)` that takes it back"
            )
        inverses: list[Operation] = []
        for operation in reversed(migration.operations):
            try:
                inverses += operation.declared_inverse()
            except OperationError as error:
                raise self._refusal(
                    f"{migration.name} has {operation}, and {_sentence(error)} A `revert(ckpt)` in its file could say "
                    "what to do"
                ) from error
        return inverses

    def _take_back(self, migration: Migration, ckpt: CkptType) -> CkptType:
        operations = self._inverses.get(migration.name)
        try:
            rules = migration.optimizer and migration.optimizer.declared_inverse(
                migration.operations
            )
            following = rules and rules.begin(ckpt, operations)
        except OperationError as error:
            raise self._refusal(f"{migration.name}: {_sentence(error)}") from error
        if operations is None:
            ckpt = self._call(migration, ckpt)
        for position, operation in enumerate(operations or ()):
            try:
                ckpt = following.apply(operation, ckpt) if following else operation(ckpt)
            # One of an author's own may raise anything, as it may when it is run.
            except Exception as error:
                # It may have been recorded as one that does not apply. An operation that fails changes nothing.
                is_refused = isinstance(error, OperationError) and position == 0
                if is_refused and any(r.otherwise != "refuse" for r in migration.requires):
                    return ckpt
                raise self._refusal(
                    f"{migration.name} cannot be taken back by {operation}: {_sentence(error)}"
                ) from error
        if following:
            try:
                outcome = following.finish(ckpt)
            except OperationError as error:
                raise self._refusal(f"{migration.name}: {_sentence(error)}") from error
            said = (f"{migration.name}: {sentence}" for sentence in outcome.warnings)
            self.warnings = (*self.warnings, *said)
        return ckpt

    def _call(self, migration: Migration, ckpt: CkptType) -> CkptType:
        """Call an author's `revert`."""
        assert migration.revert is not None
        try:
            result: object = migration.revert(ckpt)
        except (Exception, SystemExit) as error:
            what = f"{type(error).__name__}: {error}".removesuffix(": ")
            raise self._refusal(f"the `revert` of {migration.name} failed: {what}") from error
        if not isinstance(result, MutableMapping):
            raise self._refusal(
                f"the `revert` of {migration.name} returned a {type(result).__name__} and no checkpoint. End it with "
                "`return ckpt`"
            )
        return result

    def _refusal(self, why: str) -> UndoRefused:
        return UndoRefused(
            f"{self._path} cannot be reverted by its migrations: {why.removesuffix('.')}. {self._no_bundle}",
            path=self._path,
        )


def _sentence(error: Exception) -> str:
    kind = "" if isinstance(error, OperationError) else f"{type(error).__name__}: "
    return f"{kind}{error}".removesuffix(".") + "."

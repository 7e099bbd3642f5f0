"""The runner: applies a plan to a checkpoint in memory and keeps its history.

A migration sees the history in the checkpoint, with the names of those that ran before it, and
may do three things to it:

* drop it, by building a new mapping or losing `_metadata`: then it is put back;
* rewrite it, as projects do whose migrations got other names: then what it wrote is the history
  from there on. Names it leaves out are gone, and a migration of this run whose name it writes
  does not run any more;
* write something that is no history: then it has failed.

What a migration requires is checked just before it is applied. Where that is not met, the run ends,
or the migration is recorded as if it had run, as the requirement says.

The optimizers in a checkpoint follow a migration that says how, or whose operations do; after one that
does not, the report says that they have not followed.

The history stays where it was found. A new one goes into the `_metadata` of a flat state dict
and under the key of any other checkpoint; the same choice is made again when migrations turn the
one kind into the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING

from migrate_ckpt.errors import InvalidHistory, MigrationFailed, RequirementsNotMet
from migrate_ckpt.history import (
    History,
    Place,
    Record,
    is_flat_state_dict,
    read_history,
    write_history,
)
from migrate_ckpt.migration import CkptType, Migration
from migrate_ckpt.plan import Plan
from migrate_ckpt.report import Report

if TYPE_CHECKING:
    from migrate_ckpt.operations.operation import Operation
    from migrate_ckpt.operations.requirements import Requirement
    from migrate_ckpt.optimizers.following import Following, Outcome

OnStep = Callable[[int, int, str], None]
"""Called before each migration with its position, counted from one, their count, its name."""
AfterStep = Callable[[str, CkptType, Report], None]
"""Called after each migration, if it did not fail, with its name, and the checkpoint and report as they are then."""


def run_plan(
    ckpt: CkptType,
    plan: Plan,
    migrations: Iterable[Migration],
    *,
    on_step: OnStep | None = None,
    after_step: AfterStep | None = None,
    history_in_metadata: bool = True,
) -> tuple[CkptType, Report]:
    """Run a plan on a checkpoint that the caller has made its own, for it is changed.

    The plan was made for this checkpoint's history. With `history_in_metadata=False` the history
    is kept under the key whatever the checkpoint is.

    Raises:
        MigrationFailed: A migration raised or returned no checkpoint; carries the report so far.
        RequirementsNotMet: The checkpoint lacks what a migration requires, which was not applied.
    """
    run = _Run(ckpt, plan, history_in_metadata=history_in_metadata)
    callbacks = {migration.name: migration for migration in migrations}
    for position, name in enumerate(plan.to_run, 1):
        if on_step is not None:
            on_step(position, len(plan.to_run), name)
        run.step(callbacks[name], position)
        if after_step is not None:
            after_step(name, run.ckpt, run.report)
    return run.finish()


class _Run:
    """The state of one run: the checkpoint, its history and the report so far."""

    def __init__(self, ckpt: CkptType, plan: Plan, *, history_in_metadata: bool) -> None:
        is_mapping = isinstance(ckpt, Mapping)
        found = read_history(ckpt) if is_mapping else History()
        self.ckpt = ckpt
        self.plan = plan
        self._order = [step.name for step in plan.steps if step.state != "unknown"]
        self.history = found.with_renamed(plan.renamed, set_name=plan.set_name, names=self._order)
        self.report = Report(plan, warnings=plan.warnings)
        self._was_flat = is_mapping and is_flat_state_dict(ckpt)
        self._allows_metadata = history_in_metadata
        if plan.renamed:
            # Each migration finds the history in the checkpoint, and what it leaves there is gone on with.
            self._write_history()

    def step(self, migration: Migration, position: int) -> None:
        if self._is_recorded_meanwhile(migration.name):
            return
        started = time.perf_counter()
        outcome = None
        try:
            unmet = _unmet(migration, self.ckpt)
            if not unmet:
                is_in_step = not self.report.optimizer_not_followed
                self.ckpt, outcome = _apply(migration, self.ckpt, is_in_step=is_in_step)
                self._adopt_history()
        # A migration that calls sys.exit must not end the process that runs it.
        except (Exception, SystemExit) as error:
            cause = error.__cause__ if isinstance(error, _OperationFailed) else error
            raise self._failure(migration, position, error) from cause
        if unmet:
            self._pass_over(migration, position, unmet)
        else:
            self._record(migration, time.perf_counter() - started)
            self._report_optimizer(migration.name, outcome)

    def finish(self) -> tuple[CkptType, Report]:
        if self.plan.has_work:
            self._write_history()
        return self.ckpt, self.report

    def _is_recorded_meanwhile(self, name: str) -> bool:
        if self.history.find(name, set_name=self.plan.set_name) is None:
            return False
        sentence = f"Not run, because an earlier migration wrote it into the history: {name}."
        self.report = replace(
            self.report,
            recorded=(*self.report.recorded, name),
            warnings=(*self.report.warnings, sentence),
        )
        return True

    def _adopt_history(self) -> None:
        found = read_history(self.ckpt)
        if found.place is not None:
            self.history = found.refined_by(self.history)

    def _pass_over(
        self, migration: Migration, position: int, unmet: Sequence[tuple[Requirement, str]]
    ) -> None:
        """Record a migration that does not apply to this checkpoint, or refuse the checkpoint."""
        sentences = [sentence for _, sentence in unmet]
        refuses = any(requirement.otherwise == "refuse" for requirement, _ in unmet)
        # What is no mapping has no history to record anything in.
        if refuses or not isinstance(self.ckpt, Mapping):
            raise RequirementsNotMet(
                f"The migration {migration.name} ({position} of {len(self.plan.to_run)}) is not for "
                f"this checkpoint: {' '.join(sentences)}",
                missing=sentences,
                name=migration.name,
                position=position,
                count=len(self.plan.to_run),
                report=self.report,
            )
        self._add_to_history(migration)
        sentence = (
            f"Not applicable, and recorded as applied: {migration.name}. {' '.join(sentences)}"
        )
        self.report = replace(
            self.report,
            not_applicable=(*self.report.not_applicable, migration.name),
            warnings=(*self.report.warnings, sentence),
        )

    def _record(self, migration: Migration, seconds: float) -> None:
        self._add_to_history(migration)
        self.report = replace(
            self.report,
            ran=(*self.report.ran, migration.name),
            seconds=(*self.report.seconds, seconds),
        )

    def _report_optimizer(self, name: str, outcome: Outcome | None) -> None:
        if outcome is None:
            return
        followed, not_followed = self.report.optimizer_followed, self.report.optimizer_not_followed
        sentences = [f"{name}: {sentence}" for sentence in outcome.warnings]
        self.report = replace(
            self.report,
            optimizer_followed=(*followed, name) if outcome.is_followed is True else followed,
            optimizer_not_followed=(
                (*not_followed, name) if outcome.is_followed is False else not_followed
            ),
            warnings=(*self.report.warnings, *sentences),
        )

    def _add_to_history(self, migration: Migration) -> None:
        # A list of functions is no set: its names count everywhere, as in the original library.
        is_of_set = migration.digest is not None or self.plan.set_name != "default"
        record = Record(migration.name, self.plan.set_name if is_of_set else None, migration.digest)
        self.history = self.history.with_record(record, self._order, set_name=self.plan.set_name)
        self._write_history()

    def _write_history(self) -> None:
        before = self.ckpt
        place = self._place() if self._allows_metadata else "key"
        self.ckpt = write_history(before, self.history, in_metadata=place == "metadata")
        self.history = replace(self.history, place=place)
        self._was_flat = is_flat_state_dict(self.ckpt)
        if self.ckpt is not before:
            sentence = (
                "The history of a flat state dict is kept in its _metadata, which a "
                f"{type(before).__name__} cannot have: the checkpoint is an OrderedDict now."
            )
            known = self.report.warnings
            self.report = replace(self.report, warnings=tuple(dict.fromkeys((*known, sentence))))

    def _place(self) -> Place:
        is_flat = is_flat_state_dict(self.ckpt)
        if self.history.place is None or is_flat != self._was_flat:
            return "metadata" if is_flat else "key"
        return self.history.place

    def _failure(
        self, migration: Migration, position: int, error: BaseException
    ) -> MigrationFailed:
        count = len(self.plan.to_run)
        is_sentence = isinstance(error, (_BadResult, _OperationFailed))
        reason = str(error) if is_sentence else _describe(error)
        where = _where(migration, error)
        return MigrationFailed(
            f"The migration {migration.name} ({position} of {count}) failed{where}: {reason}",
            name=migration.name,
            position=position,
            count=count,
            report=self.report,
        )


class _BadResult(TypeError):
    """`handle` returned what is no checkpoint."""


class _OperationFailed(Exception):
    """Says which operation of a declared migration failed; its cause says why."""


def _unmet(migration: Migration, ckpt: CkptType) -> list[tuple[Requirement, str]]:
    """Return each requirement that the checkpoint does not meet, with what is missing."""
    found = [(requirement, requirement.unmet(ckpt)) for requirement in migration.requires]
    return [(requirement, sentence) for requirement, sentence in found if sentence is not None]


def _apply(
    migration: Migration, ckpt: CkptType, *, is_in_step: bool
) -> tuple[CkptType, Outcome | None]:
    rules, following = migration.optimizer, None
    if rules is not None:
        following = rules.begin(ckpt, migration.operations, is_in_step=is_in_step)
    if migration.operations is None:
        result: object = migration.callback(ckpt)
    else:
        result = _apply_operations(migration.operations, ckpt, following)
    if result is None:
        raise _BadResult("it returned nothing. End it with `return ckpt`.")
    if not isinstance(result, MutableMapping):
        # Of a foreign object this is the class that the file names.
        raise _BadResult(
            f"it returned a {result.__class__.__qualname__}, and a checkpoint is a mutable mapping."
        )
    return result, None if following is None else following.finish(result)


def _apply_operations(
    operations: Sequence[Operation], ckpt: CkptType, following: Following | None
) -> CkptType:
    for position, operation in enumerate(operations, 1):
        try:
            ckpt = operation(ckpt) if following is None else following.apply(operation, ckpt)
        except Exception as error:
            raise _OperationFailed(
                f"its operation {position} of {len(operations)}, {operation}: {_describe(error)}"
            ) from error
    return ckpt


def _describe(error: BaseException) -> str:
    if isinstance(error, InvalidHistory):
        return f"it left an unusable history. {error}"
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def _where(migration: Migration, error: BaseException) -> str:
    """Name the file, and the line of it that the error came through last."""
    code = getattr(migration.callback, "__code__", None)
    if not isinstance(code, CodeType):
        return ""
    lines = []
    frame = error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == code.co_filename:
            lines.append(frame.tb_lineno)
        frame = frame.tb_next
    line = lines[-1] if lines else code.co_firstlineno
    return f" in {Path(code.co_filename).name}, line {line}"

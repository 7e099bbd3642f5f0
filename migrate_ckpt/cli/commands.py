"""The commands about checkpoints: each asks the library, and says what the answer means."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from migrate_ckpt.cli.batch import Outcome, act_on_each
from migrate_ckpt.cli.exit_codes import ANSWER_IS_NO, DONE, MIGRATION_FAILED, refuse_usage
from migrate_ckpt.cli.output import (
    Line,
    describe_inspection,
    describe_report,
    print_json,
    shown,
)
from migrate_ckpt.cli.plan_output import describe_plan
from migrate_ckpt.cli.progress import Progress
from migrate_ckpt.cli.sources import SourceFile, find_sources
from migrate_ckpt.cli.targets import find_targets, made_folder
from migrate_ckpt.files import (
    inspect_file,
    is_migrated,
    migrate_file,
    plan_file,
)
from migrate_ckpt.folder import read_set
from migrate_ckpt.formats.allowed_globals import read_allowed_globals
from migrate_ckpt.history_files import repair_file, stamp_file
from migrate_ckpt.reverting import revert_file


def run(options: Namespace) -> int:
    sources = find_sources(options.sources, left_out=options.output_dir)
    targets = find_targets(options, sources)
    migrations = read_set(options.folder, options.set_name)
    choices = {**choices_of(options), "format": options.format}

    def migrate(source: SourceFile, progress: Progress) -> Outcome:
        target = targets[source.path]
        data: dict[str, Any] = {"target": str(target)}
        if _is_done_already(options, source.path, target) and is_migrated(
            target, migrations, **choices
        ):
            lines = [Line(f"{shown(target)} is migrated already", "dim")]
            return Outcome("already migrated", lines, data)
        with made_folder(target.parent):
            report = migrate_file(
                source.path,
                target,
                folder=migrations,
                force=options.force,
                keep_undo=options.keep_undo,
                on_step=progress.on_step,
                **choices,
            )
        data["report"] = report.to_dict()
        status = "migrated" if report.plan.has_work else "up to date"
        text = describe_report(source.path, target, report, is_one_of_many=len(sources) > 1)
        return Outcome(status, [Line(text)], data)

    return act_on_each(options, sources, migrate)


def revert(options: Namespace) -> int:
    sources = find_sources(options.sources, left_out=options.output_dir)
    targets = find_targets(options, sources)
    if options.undo is not None and len(sources) > 1:
        refuse_usage("--undo names the bundle of one file: for several, each has its own beside it")

    def revert_one(source: SourceFile, progress: Progress) -> Outcome:
        target = targets[source.path]
        with made_folder(target.parent):
            reverted = revert_file(
                source.path,
                target,
                to=options.to,
                folder=options.folder,
                set_name=options.set_name,
                undo=options.undo,
                force=options.force,
            )
        names, warnings = reverted.names, reverted.warnings
        lines = [Line(f"{shown(target)} is as it was before {', '.join(names)}")]
        if not names:
            lines = [Line(f"{shown(source.path)} has nothing to revert", "dim")]
        lines += [Line(warning, "yellow") for warning in warnings]
        data = {"target": str(target), "reverted": list(names), "warnings": list(warnings)}
        return Outcome("reverted" if names else "up to date", lines, data)

    return act_on_each(options, sources, revert_one)


def plan(options: Namespace) -> int:
    sources = find_sources(options.sources)
    migrations = read_set(options.folder, options.set_name)
    choices = choices_of(options)

    def plan_one(source: SourceFile, progress: Progress) -> Outcome:
        planned = plan_file(
            source.path, migrations, with_changes=options.verbose, max_changes=None, **choices
        )
        lines = describe_plan(source.path, planned, verbose=options.verbose)
        # Of forty large checkpoints that is much, and a person does not see it.
        data = {"plan": planned.to_dict()} if options.json or options.report else {}
        if planned.failing is not None:
            return Outcome("would fail", lines, data, MIGRATION_FAILED)
        if planned.has_work:
            return Outcome("to migrate", lines, data, ANSWER_IS_NO)
        return Outcome("up to date", lines, data)

    return act_on_each(options, sources, plan_one)


def inspect(options: Namespace) -> int:
    inspection = inspect_file(options.source)
    if options.json:
        print_json(inspection.to_dict())
    else:
        print(describe_inspection(options.source, inspection))
    return DONE


def stamp(options: Namespace) -> int:
    sources = find_sources(options.sources, left_out=options.output_dir)
    targets = find_targets(options, sources)
    migrations = read_set(options.folder, options.set_name)

    def stamp_one(source: SourceFile, progress: Progress) -> Outcome:
        target = targets[source.path]
        with made_folder(target.parent):
            names = stamp_file(source.path, target, folder=migrations, force=options.force)
        text = f"{shown(target)}: {len(names)} migrations in its history, none of them run"
        return Outcome("stamped", [Line(text)], {"target": str(target), "history": list(names)})

    return act_on_each(options, sources, stamp_one)


def repair(options: Namespace) -> int:
    sources = find_sources(options.sources, left_out=options.output_dir)
    targets = find_targets(options, sources)
    migrations = read_set(options.folder, options.set_name)
    unknown = sorted(set(options.accept) - {file.name for file in migrations.files})
    if unknown:
        refuse_usage(f"the set {migrations.name} has no migration {', '.join(unknown)}")

    def repair_one(source: SourceFile, progress: Progress) -> Outcome:
        target = targets[source.path]
        with made_folder(target.parent):
            names = repair_file(
                source.path, target, folder=migrations, names=options.accept, force=options.force
            )
        data = {"target": str(target), "accepted": list(names)}
        if not names:
            return Outcome("in order", [Line(f"{shown(target)}: nothing to repair", "dim")], data)
        text = f"{shown(target)}: accepted as they are now: {', '.join(names)}"
        return Outcome("repaired", [Line(text)], data)

    return act_on_each(options, sources, repair_one)


def _is_done_already(options: Namespace, source: Path, target: Path) -> bool:
    """Whether the target may be what an earlier call for the same folder made of the source.

    One that is older than its source is not, whatever its history says.
    """
    return (
        options.output_dir is not None
        and not options.force
        and target.exists()
        and target.stat().st_mtime_ns >= source.stat().st_mtime_ns
    )


def choices_of(options: Namespace) -> dict[str, Any]:
    return {
        "to": options.to,
        "policy": options.policy,
        "allow_unknown_history": options.allow_unknown_history,
        "allowed_globals": _allowed_globals(options.allowed_globals),
    }


def _allowed_globals(path: Path | None) -> tuple[str, ...] | None:
    return None if path is None else read_allowed_globals(path.read_text(encoding="utf-8"))

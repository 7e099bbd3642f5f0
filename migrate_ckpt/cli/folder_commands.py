"""The commands about a folder of migrations: new, autogenerate, squash, adopt, lint and check."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from migrate_ckpt.adopting.adopted import Adopted
from migrate_ckpt.adopting.adopting import adopt as take_over
from migrate_ckpt.check import FolderCheck, check_folder
from migrate_ckpt.cli.batch import Outcome, act_on_each
from migrate_ckpt.cli.commands import choices_of
from migrate_ckpt.cli.draft_output import describe_draft
from migrate_ckpt.cli.exit_codes import ANSWER_IS_NO, DONE, MIGRATION_FAILED, refuse_usage
from migrate_ckpt.cli.output import Line, counted, print_json, print_lines, shown
from migrate_ckpt.cli.plan_output import describe_plan
from migrate_ckpt.cli.progress import Progress
from migrate_ckpt.cli.sections import section_of
from migrate_ckpt.cli.sources import SourceFile, find_sources
from migrate_ckpt.errors import InvalidHistory
from migrate_ckpt.files import inspect_file, plan_file
from migrate_ckpt.folder import read_set
from migrate_ckpt.history import History
from migrate_ckpt.linting.folder_lint import lint_folder
from migrate_ckpt.new_file import new_migration, title_of
from migrate_ckpt.outline import printable


def new(options: Namespace) -> int:
    path = new_migration(options.folder, options.name, form=options.form)
    if options.json:
        print_json({"path": str(path)})
    else:
        print(shown(path))
    return DONE


def autogenerate(options: Namespace) -> int:
    # It loads torch, which the other commands of a folder do without.
    from migrate_ckpt.drafting.comparing import draft_migration

    draft = draft_migration(options.old, options.new, section=section_of(options))
    text = draft.source(title_of(options.name), (options.old.name, options.new.name))
    path = fixture = None
    if not options.print and draft.drafted:
        path = new_migration(options.folder, options.name, text=text)
        # One of a draft that somebody has to finish would hold it to what it is not to be.
        fixture = _write_fixture(options, path) if draft.is_complete else None
    if options.json:
        paths = {"path": path, "fixture": fixture}
        data = {name: None if found is None else str(found) for name, found in paths.items()}
        print_json({**data, **draft.to_dict()})
    elif options.print:
        print(text, end="")
    else:
        print_lines(describe_draft(path, draft))
        if fixture is not None:
            print_lines([Line(f"{shown(fixture)}: its fixture, for migrate-ckpt test")])
    return DONE if draft.is_complete else ANSWER_IS_NO


def squash(options: Namespace) -> int:
    # It loads torch, where the migrations do.
    from migrate_ckpt.squashing.squash import squash as write_squashed

    first, dots, last = options.range.partition("..")
    if not (first and dots and last):
        refuse_usage(f"{options.range!r} is no range such as 0001_first..0004_last")
    made = write_squashed(options.folder, first, last, name=options.name)
    if options.json:
        print_json({**asdict(made), "path": str(made.path)})
        return DONE
    text = f"{made.count_before} operations of {counted(len(made.replaces))} are {made.count} now"
    print_lines(
        [Line(f"{shown(made.path)}: {text}"), *(Line(f"  {note}", "yellow") for note in made.notes)]
    )
    return DONE


def adopt(options: Namespace) -> int:
    adopted = take_over(options.source, options.folder, version_key=options.version_key)
    if options.json:
        data = asdict(adopted)
        print_json({**data, "written": [str(path) for path in adopted.written]})
    else:
        print_lines(_describe_adopted(options.folder, adopted))
    return ANSWER_IS_NO if adopted.left else DONE


def _describe_adopted(folder: Path, adopted: Adopted) -> Iterator[Line]:
    yield Line(f"{shown(folder)}: {adopted.kind}, {len(adopted.written)} files written")
    for name, reason in adopted.left:
        yield Line(f"  left: {printable(name)} {printable(reason)}", "bold yellow")
    yield from (Line(f"  {printable(note)}", "yellow") for note in adopted.notes)


def _write_fixture(options: Namespace, path: Path) -> Path | None:
    """Write the fixture of a new migration, of the old side in small, if it is a checkpoint that can be."""
    from migrate_ckpt.fixtures.writing import write_fixture_for

    return None if options.old.suffix == ".json" else write_fixture_for(options.old, path)


def lint(options: Namespace) -> int:
    histories = {
        shown(source.path): _history_of(source.path) for source in find_sources(options.against)
    }
    findings = lint_folder(options.folder, histories=histories)
    if options.json:
        print_json({"findings": [finding.to_dict() for finding in findings]})
    else:
        print_lines(
            [Line(printable(str(finding))) for finding in findings] or [Line("no findings")]
        )
    return ANSWER_IS_NO if findings else DONE


def check(options: Namespace) -> int:
    found = check_folder(options.folder)
    data = _check_data(found)
    for error in found.problems:
        print(f"{shown(error.path)}: {printable(str(error))}", file=sys.stderr)
    if found.problems or not options.sources:
        if options.json:
            print_json(data)
        elif not found.problems:
            print_lines(_describe_sets(options.folder, found))
        return ANSWER_IS_NO if found.problems else DONE
    if not options.json:
        print_lines(_describe_sets(options.folder, found))
    return _check_checkpoints(options, data)


def _check_checkpoints(options: Namespace, data: Mapping[str, Any]) -> int:
    sources = find_sources(options.sources)
    migrations = read_set(options.folder, options.set_name)
    choices = choices_of(options)

    def check_one(source: SourceFile, progress: Progress) -> Outcome:
        plan = plan_file(source.path, migrations, with_changes=True, **choices)
        data = {"plan": plan.to_dict()}
        lines = describe_plan(source.path, plan, verbose=False)
        lines += [Line(f"  {sentence}", "yellow") for sentence in plan.warnings]
        if plan.failing is not None:
            reason = (plan.failing.preview.error or {}) if plan.failing.preview else {}
            lines.append(Line(f"  {printable(str(reason.get('message')))}", "bold red"))
            return Outcome("would fail", lines, data, MIGRATION_FAILED)
        skipped = any(step.state == "missed" and not step.will_run for step in plan.steps)
        if skipped or plan.unknown or plan.changed:
            return Outcome("in doubt", lines, data, ANSWER_IS_NO)
        return Outcome("good", lines, data)

    return act_on_each(options, sources, check_one, also=data)


def _check_data(found: FolderCheck) -> dict[str, Any]:
    return {
        "sets": {each.name: [file.name for file in each.files] for each in found.sets},
        "problems": [{**error.to_dict(), "path": str(error.path)} for error in found.problems],
    }


def _describe_sets(folder: Path, found: FolderCheck) -> Iterator[Line]:
    for each in found.sets:
        yield Line(f"{shown(folder)}, set {each.name}: {counted(len(each.files))}, all can be run")


def _history_of(path: Path) -> History:
    inspection = inspect_file(path)
    if inspection.history_error is not None:
        raise InvalidHistory(inspection.history_error)
    return inspection.history or History()

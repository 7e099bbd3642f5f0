"""The command about fixtures: hold migrations to them, and make those that are not there."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from migrate_ckpt.cli.exit_codes import ANSWER_IS_NO, DONE, refuse_usage
from migrate_ckpt.cli.output import Line, counted, print_json, print_lines, shown
from migrate_ckpt.folder import MigrationSet, read_set
from migrate_ckpt.outline import printable

if TYPE_CHECKING:
    from migrate_ckpt.fixtures.testing import Tested


def test(options: Namespace) -> int:
    # It loads torch, which most commands do without.
    from migrate_ckpt.fixtures.testing import hold_to_fixtures

    migrations = read_set(options.folder, options.set_name)
    unknown = sorted(set(options.names) - {file.name for file in migrations.files})
    if unknown:
        refuse_usage(f"the set {migrations.name} has no migration {', '.join(unknown)}")
    written = (
        [] if options.write is None else list(_write(options.write, migrations, options.names))
    )
    tested = list(hold_to_fixtures(migrations, options.names))
    bad = {"failed", "no fixture"} if options.require_fixtures else {"failed"}
    is_bad = any(each.verdict in bad for each in tested)
    if options.json:
        data = {"fixtures": [str(path) for path in written]}
        print_json({**data, "migrations": [each.to_dict() for each in tested]})
    else:
        print_lines([*(Line(f"{shown(path)} written") for path in written), *_describe(tested)])
    return ANSWER_IS_NO if is_bad else DONE


def _write(source: Path, migrations: MigrationSet, names: Sequence[str]) -> Iterator[Path]:
    from migrate_ckpt.fixtures.writing import write_fixtures

    for name, path in write_fixtures(source, migrations, names):
        if path is None:
            print_lines([Line(f"{name}: no fixture that is small enough could be made", "yellow")])
        else:
            yield path


def _describe(tested: Sequence[Tested]) -> Iterator[Line]:
    for each in tested:
        if each.verdict == "failed":
            yield Line(f"{each.name}: failed: {printable(each.reason)}", "bold red")
        elif each.verdict == "no fixture":
            yield Line(f"{each.name}: no fixture", "dim")
        elif each.no_way_back:
            yield Line(f"{each.name}: passed, up; not back: {printable(each.no_way_back)}", "green")
        else:
            yield Line(f"{each.name}: passed, up and down", "green")
    passed = sum(each.verdict == "passed" for each in tested)
    yield Line(f"{counted(len(tested))}, {passed} passed")

"""The grammar of the command: its words, their options, and which function each word calls."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from migrate_ckpt import __version__
from migrate_ckpt.cli import commands as do
from migrate_ckpt.folder import DEFAULT_SET
from migrate_ckpt.formats.conversion import Format
from migrate_ckpt.plan import Policy

_EPILOG = """exit codes:
  0    done, or nothing to do
  1    the answer is no: migrations are pending
  2    wrong usage, folder or path
  3    a checkpoint cannot be read
  4    a checkpoint's history was refused
  5    a migration failed
  130  interrupted

examples:
  migrate-ckpt plan old.ckpt
  migrate-ckpt run old.ckpt -o new.ckpt
  migrate-ckpt run runs --output-dir migrated
"""

_RUN_EXAMPLES = """A SOURCE is a file, a folder (all checkpoints below it, by their content), or a pattern in quotes.

examples:
  migrate-ckpt run old.ckpt -o new.ckpt
  migrate-ckpt run old.ckpt --in-place
  migrate-ckpt run runs --output-dir migrated          sub-folders are kept
  migrate-ckpt run 'runs/**/*.ckpt' --output-dir migrated --report report.json

The same command again goes on where it was interrupted: in --output-dir, what is migrated already is skipped.
"""

_PLAN_EXAMPLES = """examples:
  migrate-ckpt plan old.ckpt --verbose
  migrate-ckpt plan runs --policy strict
  migrate-ckpt plan 'runs/**/*.ckpt' --json
"""

_INSPECT_EXAMPLES = """example:
  migrate-ckpt inspect old.ckpt
"""

_STAMP_EXAMPLES = """For checkpoints that are known to be of today's code.

example:
  migrate-ckpt stamp fresh.ckpt --in-place
"""

_NEW_EXAMPLES = """example:
  migrate-ckpt new rename_encoder                      migrations/0003_rename_encoder.py
"""


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="migrate-ckpt",
        description="Bring old PyTorch checkpoints up to date by running migrations over them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"migrate-ckpt {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (_add_run, _add_plan, _add_inspect, _add_stamp, _add_new):
        add(commands)
    return parser


def _add_run(commands: Any) -> None:
    run = _add(commands, "run", do.run, "migrate checkpoints", _RUN_EXAMPLES)
    _add_sources(run)
    _add_targets(run)
    _add_choices(run)
    run.add_argument(
        "--format", choices=get_args(Format), help="write another format than the one that came in"
    )


def _add_plan(commands: Any) -> None:
    text = "say what run would do; exit code 1 if that is anything"
    plan = _add(commands, "plan", do.plan, text, _PLAN_EXAMPLES)
    _add_sources(plan)
    _add_choices(plan)
    plan.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="try the migrations out in memory, and say for each what it would change",
    )


def _add_inspect(commands: Any) -> None:
    text = "say what a checkpoint holds, without running anything of it"
    inspect = _add(commands, "inspect", do.inspect, text, _INSPECT_EXAMPLES)
    inspect.add_argument("source", type=Path, metavar="FILE")


def _add_stamp(commands: Any) -> None:
    text = "write all migrations into the history and run none"
    stamp = _add(commands, "stamp", do.stamp, text, _STAMP_EXAMPLES)
    _add_sources(stamp)
    _add_targets(stamp)
    _add_folder(stamp)
    _add_set(stamp)


def _add_new(commands: Any) -> None:
    new = _add(commands, "new", do.new, "start a new migration file", _NEW_EXAMPLES)
    new.add_argument("name", metavar="NAME", help="what it does, as in rename_encoder")
    _add_folder(new)


def _add(
    commands: Any,
    name: str,
    command: Callable[[argparse.Namespace], int],
    text: str,
    examples: str,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=command)
    parser.add_argument("--json", action="store_true", help="print JSON on standard output")
    return parser


def _add_sources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sources", nargs="+", type=Path, metavar="SOURCE")
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="write what came of each file as JSON"
    )


def _add_targets(parser: argparse.ArgumentParser) -> None:
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("-o", "--output", type=Path, metavar="FILE")
    target.add_argument(
        "--output-dir", type=Path, metavar="DIR", help="is made; what is migrated there is skipped"
    )
    target.add_argument(
        "--in-place", action="store_true", help="replace each source once its result is whole"
    )
    parser.add_argument("--force", action="store_true", help="replace a target that exists already")


def _add_choices(parser: argparse.ArgumentParser) -> None:
    _add_folder(parser)
    _add_set(parser)
    parser.add_argument("--to", metavar="NAME", help="stop after this migration")
    parser.add_argument(
        "--policy", choices=get_args(Policy), default="skip-missed", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--allow-unknown-history",
        action="store_true",
        help="run all migrations even where the history names none of them",
    )
    parser.add_argument(
        "--allowed-globals",
        type=Path,
        metavar="FILE",
        help="refuse a checkpoint that names other classes and functions than this list (a path or pattern a line)",
    )


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--folder", type=Path, default=Path("migrations"), help="(default: %(default)s)"
    )


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", dest="set_name", metavar="NAME", default=DEFAULT_SET, help="(default: %(default)s)"
    )

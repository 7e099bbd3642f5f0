"""The command `migrate-ckpt`: its grammar, and which function of the library each word calls."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

from migrate_ckpt import __version__
from migrate_ckpt.cli_output import (
    describe_error,
    describe_inspection,
    describe_plan,
    describe_report,
)
from migrate_ckpt.errors import (
    FolderError,
    HistoryError,
    MigrateCkptError,
    MigrationFailed,
    TargetExists,
    UnknownMigration,
    UnreadableCheckpoint,
    UnwritableCheckpoint,
)
from migrate_ckpt.files import inspect_file, migrate_file, plan_file, stamp_file
from migrate_ckpt.folder import DEFAULT_SET, new_migration, read_set
from migrate_ckpt.formats.allowed_globals import read_allowed_globals
from migrate_ckpt.formats.conversion import Format
from migrate_ckpt.plan import Policy

DONE, ANSWER_IS_NO, USAGE, UNREADABLE, HISTORY_REFUSED, MIGRATION_FAILED, INTERRUPTED = (
    0,
    1,
    2,
    3,
    4,
    5,
    130,
)

# The first class that an error is an instance of decides; an OSError is about a path the user gave.
_EXIT_CODES: tuple[tuple[type[Exception], int], ...] = (
    (UnreadableCheckpoint, UNREADABLE),
    (HistoryError, HISTORY_REFUSED),
    (MigrationFailed, MIGRATION_FAILED),
    (UnwritableCheckpoint, MIGRATION_FAILED),
    (FolderError, USAGE),
    (UnknownMigration, USAGE),
    (TargetExists, USAGE),
    (OSError, USAGE),
)

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
  migrate-ckpt run --in-place runs/*.ckpt
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; gives its exit code."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.command(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has had enough; Python must not try to flush it again on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except (MigrateCkptError, OSError) as error:
        if options.json:
            _print_json({"error": _error_data(error)})
        print(describe_error(error), file=sys.stderr)
        return _exit_code(error)
    return code


def _run(options: argparse.Namespace) -> int:
    targets, choices = _targets(options), _choices(options)

    def migrate(source: Path) -> tuple[dict[str, Any], str, int]:
        report = migrate_file(
            source, targets[source], force=options.force, format=options.format, **choices
        )
        data = {"target": str(targets[source]), "report": report.to_dict()}
        return data, describe_report(source, targets[source], report), DONE

    return _for_each(options, migrate)


def _plan(options: argparse.Namespace) -> int:
    choices = _choices(options)
    migrations = read_set(choices.pop("folder"), choices.pop("set_name"))

    def plan(source: Path) -> tuple[dict[str, Any], str, int]:
        planned = plan_file(source, migrations, **choices)
        code = ANSWER_IS_NO if planned.has_work else DONE
        return (
            {"plan": planned.to_dict()},
            describe_plan(source, planned, verbose=options.verbose),
            code,
        )

    return _for_each(options, plan)


def _inspect(options: argparse.Namespace) -> int:
    inspection = inspect_file(options.source)
    if options.json:
        _print_json(inspection.to_dict())
    else:
        print(describe_inspection(options.source, inspection))
    return DONE


def _stamp(options: argparse.Namespace) -> int:
    targets = _targets(options)

    def stamp(source: Path) -> tuple[dict[str, Any], str, int]:
        names = stamp_file(
            source,
            targets[source],
            folder=options.folder,
            set_name=options.set_name,
            force=options.force,
        )
        text = f"{targets[source]}: {len(names)} migrations in its history, none of them run"
        return {"target": str(targets[source]), "history": list(names)}, text, DONE

    return _for_each(options, stamp)


def _new(options: argparse.Namespace) -> int:
    path = new_migration(options.folder, options.name)
    if options.json:
        _print_json({"path": str(path)})
    else:
        print(path)
    return DONE


def _for_each(
    options: argparse.Namespace, act: Callable[[Path], tuple[dict[str, Any], str, int]]
) -> int:
    """Act on each source, say what came of it, and go on after a failure; the gravest exit code wins."""
    results: list[dict[str, Any]] = []
    gravest = DONE
    for source in options.sources:
        try:
            data, text, code = act(source)
            results.append({"source": str(source), **data})
            if not options.json:
                print(text)
        except (MigrateCkptError, OSError) as error:
            code = _exit_code(error)
            results.append({"source": str(source), "error": _error_data(error)})
            print(describe_error(error, source), file=sys.stderr)
        gravest = max(gravest, code)
    if options.json:
        _print_json({"files": results})
    return gravest


def _targets(options: argparse.Namespace) -> dict[Path, Path]:
    """The target of each source, or a usage error."""
    sources: list[Path] = options.sources
    if options.in_place:
        return {source: source for source in sources}
    if options.output is not None:
        if len(sources) > 1:
            _usage("-o names one file: for several sources give --output-dir or --in-place")
        return {sources[0]: options.output}
    targets = {source: options.output_dir / source.name for source in sources}
    if len(set(targets.values())) < len(targets):
        _usage("two sources have the same file name: --output-dir can hold only one of them")
    options.output_dir.mkdir(parents=True, exist_ok=True)
    return targets


def _choices(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "folder": options.folder,
        "set_name": options.set_name,
        "to": options.to,
        "policy": options.policy,
        "allow_unknown_history": options.allow_unknown_history,
        "allowed_globals": _allowed_globals(options.allowed_globals),
    }


def _allowed_globals(path: Path | None) -> tuple[str, ...] | None:
    return None if path is None else read_allowed_globals(path.read_text(encoding="utf-8"))


def _exit_code(error: Exception) -> int:
    return next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), USAGE)


def _error_data(error: Exception) -> dict[str, Any]:
    if isinstance(error, MigrateCkptError):
        return error.to_dict()
    return {"error_type": "os_error", "message": str(error), "retryable": False}


def _usage(message: str) -> None:
    print(f"migrate-ckpt: {message}", file=sys.stderr)
    raise SystemExit(USAGE)


def _print_json(data: object) -> None:
    print(json.dumps(data, indent=2, allow_nan=False))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="migrate-ckpt",
        description="Bring old PyTorch checkpoints up to date by running migrations over them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"migrate-ckpt {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    run = _add(commands, "run", _run, "migrate checkpoints")
    _add_sources(run)
    _add_targets(run)
    _add_choices(run)
    run.add_argument(
        "--format", choices=get_args(Format), help="write another format than the one that came in"
    )

    plan = _add(commands, "plan", _plan, "say what run would do; exit code 1 if that is anything")
    _add_sources(plan)
    _add_choices(plan)
    plan.add_argument("-v", "--verbose", action="store_true", help="a line for each migration")

    inspect = _add(
        commands, "inspect", _inspect, "say what a checkpoint holds, without running anything of it"
    )
    inspect.add_argument("source", type=Path, metavar="FILE")

    stamp = _add(commands, "stamp", _stamp, "write all migrations into the history and run none")
    _add_sources(stamp)
    _add_targets(stamp)
    _add_folder(stamp)
    _add_set(stamp)

    new = _add(commands, "new", _new, "start a new migration file")
    new.add_argument("name", metavar="NAME", help="what it does, as in rename_encoder")
    _add_folder(new)
    return parser


def _add(
    commands: Any, name: str, command: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text.capitalize() + "."
    )
    parser.set_defaults(command=command)
    parser.add_argument("--json", action="store_true", help="print JSON on standard output")
    return parser


def _add_sources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sources", nargs="+", type=Path, metavar="SOURCE")


def _add_targets(parser: argparse.ArgumentParser) -> None:
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("-o", "--output", type=Path, metavar="FILE")
    target.add_argument("--output-dir", type=Path, metavar="DIR")
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


if __name__ == "__main__":
    sys.exit(main())

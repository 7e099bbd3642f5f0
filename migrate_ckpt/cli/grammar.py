"""The grammar of the command: its words, their options, and which function each word calls."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from migrate_ckpt import __version__
from migrate_ckpt.adopting.adopting import LIGHTNING_VERSION
from migrate_ckpt.cli import commands, fixture_commands, folder_commands, manifest_commands
from migrate_ckpt.cli.completion import SHELLS, print_completion
from migrate_ckpt.folder import DEFAULT_SET
from migrate_ckpt.formats.conversion import Format
from migrate_ckpt.linting.findings import CODES
from migrate_ckpt.manifest import CHECKS
from migrate_ckpt.plan import Policy

_EPILOG = """exit codes:
  0    done, or nothing to do
  1    the answer is no: migrations are pending, or there are findings or differences
  2    wrong usage, folder or path
  3    a checkpoint cannot be read
  4    a checkpoint's history was refused, or it cannot be reverted
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

_REVERT_EXAMPLES = """examples:
  migrate-ckpt run model.ckpt --in-place --keep-undo   model.ckpt.undo has what the new file lacks
  migrate-ckpt revert model.ckpt --in-place            and removes it again
  migrate-ckpt revert new.ckpt -o old.ckpt
  migrate-ckpt revert new.ckpt -o old.ckpt --to 0003_rename_encoder

With its undo bundle, NAME.undo, a file is put back byte for byte, whatever the migrations did. Without one, or if it
was trained on since, each migration is taken back by its operations, or by the revert(ckpt) in its file; what would
lose something is refused, and nothing is written.
"""

_COMPLETION_EXAMPLES = """examples:
  migrate-ckpt completion bash > ~/.local/share/bash-completion/completions/migrate-ckpt
  migrate-ckpt completion zsh > ~/.zfunc/_migrate-ckpt      with ~/.zfunc in fpath
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

_NEW_EXAMPLES = """A folder's _template.py is copied, if there is one, with the title in the place of {title}.

examples:
  migrate-ckpt new rename_encoder                      migrations/0003_rename_encoder.py
  migrate-ckpt new rename_encoder --handle             with a function in place of a list of operations
"""

_AUTOGENERATE_EXAMPLES = """OLD and NEW are checkpoints, state dicts or manifests (.json).
Best is a NEW that holds what OLD holds: equal content proves what became of each tensor.
Names and shapes only make it likely, and what could be one or another is left to you: exit code 1, and a TODO
in the file.

examples:
  migrate-ckpt autogenerate old.ckpt new.ckpt --name fuse_attention
  migrate-ckpt autogenerate old.json new.json --print
"""

_TEST_EXAMPLES = """The fixture of a migration is fixtures/NAME.json beside it:
a small checkpoint of before, and what must come of it.

examples:
  migrate-ckpt test                                    for CI: --require-fixtures refuses a migration without one
  migrate-ckpt test 0003_rename_encoder
  migrate-ckpt test --write old.ckpt                   makes those that are not there, of a checkpoint in small
"""

_SQUASH_EXAMPLES = """Who has had none of them gets the new one in their place.
Who has had some gets the rest of them, one by one. They stay in the folder until no checkpoint is in between any more.

examples:
  migrate-ckpt squash 0001_first..0004_last            writes migrations/0004_last_squashed.py
"""

_REPAIR_EXAMPLES = """For migrations that were edited since they ran, by what changes nothing for these checkpoints.

examples:
  migrate-ckpt repair runs --in-place
  migrate-ckpt repair old.ckpt -o new.ckpt --accept 0002_rename_encoder
"""

_ADOPT_EXAMPLES = """A SOURCE is a folder of the original library's or of anemoi's scripts,
or a file with an index by version, such as Lightning's. Nothing of it is imported or run.
docs/leaving-others.md says what comes along.

examples:
  migrate-ckpt adopt old/migrations --folder migrations
  migrate-ckpt adopt lightning/pytorch/utilities/migration/migration.py --folder migrations
"""

_LINT_EPILOG = (
    "codes:\n"
    + "".join(f"  {code}  {text}\n" for code, text in CODES.items())
    + """
A line that ends with "# noqa: MC008" is meant so; what concerns the whole file stands at its first line.

examples:
  migrate-ckpt lint
  migrate-ckpt lint --against 'runs/**/*.ckpt'         also finds what was edited since it was applied there
"""
)

_CHECK_EXAMPLES = """Reads the folder and imports every migration, as a run would. In checkpoints, all that is
pending is tried out in memory; nothing is written. Missed, unknown and changed migrations in
their histories count as findings.

examples:
  migrate-ckpt check
  migrate-ckpt check tests/checkpoints                 for CI: old checkpoints that must stay migratable
"""

_MANIFEST_EXAMPLES = """A SOURCE is a checkpoint's file, or module:factory, a function that builds the model.

examples:
  migrate-ckpt manifest mypackage.model:build -o migrations/manifest.json
  migrate-ckpt manifest new.ckpt -o model.json --checks keys shapes

In a folder of migrations, manifest.json says what each run of them must come to.
"""

_VERIFY_EXAMPLES = """examples:
  migrate-ckpt verify new.ckpt                         against the set's own manifest.json
  migrate-ckpt verify migrated --manifest model.json
"""


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="migrate-ckpt",
        description="Bring old PyTorch checkpoints up to date by running migrations over them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"migrate-ckpt {__version__}")
    words = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in _WORDS:
        add(words)
    return parser


def _add_run(words: Any) -> None:
    run = _add(words, "run", commands.run, "migrate checkpoints", _RUN_EXAMPLES)
    _add_sources(run)
    _add_targets(run)
    _add_choices(run)
    run.add_argument(
        "--keep-undo",
        action="store_true",
        help="write beside each target, as NAME.undo, what revert needs",
    )
    run.add_argument(
        "--format", choices=get_args(Format), help="write another format than the one that came in"
    )


def _add_revert(words: Any) -> None:
    text = "take migrations back: byte for byte what run --keep-undo has migrated"
    revert = _add(words, "revert", commands.revert, text, _REVERT_EXAMPLES)
    _add_sources(revert)
    _add_targets(revert)
    revert.add_argument(
        "--to", metavar="NAME", help="the last migration that stays (default: none)"
    )
    _add_folder(revert)
    _add_set(revert)
    revert.add_argument("--undo", type=Path, metavar="FILE", help="(default: SOURCE.undo)")


def _add_plan(words: Any) -> None:
    text = "say what run would do; exit code 1 if that is anything"
    plan = _add(words, "plan", commands.plan, text, _PLAN_EXAMPLES)
    _add_sources(plan)
    _add_choices(plan)
    plan.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="try the migrations out in memory, and say for each what it would change",
    )


def _add_inspect(words: Any) -> None:
    text = "say what a checkpoint holds, without running anything of it"
    inspect = _add(words, "inspect", commands.inspect, text, _INSPECT_EXAMPLES)
    inspect.add_argument("source", type=Path, metavar="FILE")


def _add_stamp(words: Any) -> None:
    text = "write all migrations into the history and run none"
    stamp = _add(words, "stamp", commands.stamp, text, _STAMP_EXAMPLES)
    _add_sources(stamp)
    _add_targets(stamp)
    _add_folder(stamp)
    _add_set(stamp)


def _add_new(words: Any) -> None:
    new = _add(words, "new", folder_commands.new, "start a new migration file", _NEW_EXAMPLES)
    new.add_argument("name", metavar="NAME", help="what it does, as in rename_encoder")
    form = new.add_mutually_exclusive_group()
    form.add_argument(
        "--operations",
        dest="form",
        action="store_const",
        const="operations",
        help="with a list of operations (the default, unless the folder has a _template.py)",
    )
    form.add_argument(
        "--handle", dest="form", action="store_const", const="handle", help="with a function"
    )
    _add_folder(new)


def _add_autogenerate(words: Any) -> None:
    text = "write the migration that makes one checkpoint of another"
    add_to = _add(words, "autogenerate", folder_commands.autogenerate, text, _AUTOGENERATE_EXAMPLES)
    add_to.add_argument("old", type=Path, metavar="OLD")
    add_to.add_argument("new", type=Path, metavar="NEW")
    add_to.add_argument(
        "--name",
        default="autogenerated",
        help="what it does, as in fuse_attention (default: %(default)s)",
    )
    add_to.add_argument("--print", action="store_true", help="print the file and write none")
    _add_section(add_to)
    _add_folder(add_to)


def _add_test(words: Any) -> None:
    text = "hold migrations to their fixtures, up and down"
    test = _add(words, "test", fixture_commands.test, text, _TEST_EXAMPLES)
    test.add_argument("names", nargs="*", metavar="NAME", help="(default: all)")
    test.add_argument(
        "--require-fixtures", action="store_true", help="a migration without a fixture fails"
    )
    test.add_argument(
        "--write",
        type=Path,
        metavar="OLD",
        help="make fixtures that are not there, of a checkpoint",
    )
    _add_folder(test)
    _add_set(test)


def _add_squash(words: Any) -> None:
    text = "write one migration that stands for several"
    squash = _add(words, "squash", folder_commands.squash, text, _SQUASH_EXAMPLES)
    squash.add_argument("range", metavar="FIRST..LAST")
    squash.add_argument("--name", metavar="NAME", help="(default: LAST_squashed)")
    _add_folder(squash)


def _add_repair(words: Any) -> None:
    text = "write into the history that edited migrations are what they are now"
    repair = _add(words, "repair", commands.repair, text, _REPAIR_EXAMPLES)
    _add_sources(repair)
    _add_targets(repair)
    repair.add_argument(
        "--accept", nargs="+", default=[], metavar="NAME", help="(default: all that are changed)"
    )
    _add_folder(repair)
    _add_set(repair)


def _add_adopt(words: Any) -> None:
    text = "take over migrations that were written for something else"
    adopt = _add(words, "adopt", folder_commands.adopt, text, _ADOPT_EXAMPLES)
    adopt.add_argument("source", type=Path, metavar="SOURCE")
    adopt.add_argument(
        "--version-key",
        default=LIGHTNING_VERSION,
        metavar="KEY",
        help="where an index finds the version in a checkpoint (default: %(default)s)",
    )
    _add_folder(adopt)


def _add_lint(words: Any) -> None:
    text = "find mistakes in the migrations, without running them"
    lint = _add(words, "lint", folder_commands.lint, text, _LINT_EPILOG)
    lint.add_argument(
        "--against",
        nargs="+",
        type=Path,
        default=[],
        metavar="SOURCE",
        help="checkpoints whose histories say what was applied",
    )
    _add_folder(lint)


def _add_check(words: Any) -> None:
    text = "check that the migrations can be run, and that they migrate the given checkpoints"
    check = _add(words, "check", folder_commands.check, text, _CHECK_EXAMPLES)
    _add_sources(check, least="*")
    _add_choices(check)


def _add_manifest(words: Any) -> None:
    text = "write down which tensors a model's state dict has"
    add_to = _add(words, "manifest", manifest_commands.manifest, text, _MANIFEST_EXAMPLES)
    add_to.add_argument("source", metavar="SOURCE")
    add_to.add_argument("-o", "--output", type=Path, metavar="FILE", help="(default: print it)")
    add_to.add_argument("--force", action="store_true", help="replace a target that exists already")
    _add_section(add_to)
    add_to.add_argument(
        "--prefix", default="", help="put this before each key, as in model. for Lightning"
    )
    add_to.add_argument(
        "--checks",
        nargs="+",
        choices=CHECKS,
        metavar="CHECK",
        help="of: %(choices)s (default: all)",
    )
    add_to.add_argument(
        "--allocate",
        action="store_true",
        help="build the model with its memory, where it cannot be built without",
    )


def _add_verify(words: Any) -> None:
    text = "say how checkpoints differ from a manifest; exit code 1 if they do"
    verify = _add(words, "verify", manifest_commands.verify, text, _VERIFY_EXAMPLES)
    _add_sources(verify)
    verify.add_argument(
        "--manifest", type=Path, metavar="FILE", help="(default: manifest.json of the set)"
    )
    _add_section(verify)
    _add_folder(verify)
    _add_set(verify)


def _add_completion(words: Any) -> None:
    text = "print what lets a shell complete this command"
    word = _add(words, "completion", _complete, text, _COMPLETION_EXAMPLES)
    word.add_argument("shell", choices=SHELLS)


def _complete(options: argparse.Namespace) -> int:
    return print_completion(parser(), options.shell)


def _add_section(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--section", metavar="PATH", help="where the state dict stands, as in ema.model"
    )


def _add(
    words: Any,
    name: str,
    command: Callable[[argparse.Namespace], int],
    text: str,
    examples: str,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = words.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=command)
    parser.add_argument("--json", action="store_true", help="print JSON on standard output")
    return parser


def _add_sources(parser: argparse.ArgumentParser, *, least: str = "+") -> None:
    parser.add_argument("sources", nargs=least, type=Path, metavar="SOURCE")
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="write what came of each file as JSON"
    )


def _add_targets(parser: argparse.ArgumentParser) -> None:
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("-o", "--output", type=Path, metavar="FILE")
    target.add_argument("--output-dir", type=Path, metavar="DIR", help="is made if it is not there")
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


_WORDS = (
    _add_run,
    _add_revert,
    _add_plan,
    _add_inspect,
    _add_stamp,
    _add_new,
    _add_autogenerate,
    _add_test,
    _add_squash,
    _add_repair,
    _add_adopt,
    _add_lint,
    _add_check,
    _add_manifest,
    _add_verify,
    _add_completion,
)

"""The command `migrate-ckpt`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from migrate_ckpt.cli.exit_codes import DONE, INTERRUPTED, exit_code_of
from migrate_ckpt.cli.grammar import parser
from migrate_ckpt.cli.output import describe_error, error_data, print_json
from migrate_ckpt.errors import MigrateCkptError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; gives its exit code."""
    _print_what_the_terminal_cannot_as_escapes()
    options = parser().parse_args(arguments)
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
            print_json({"error": error_data(error)})
        print(describe_error(error), file=sys.stderr)
        return exit_code_of(error)
    return code


def _print_what_the_terminal_cannot_as_escapes() -> None:
    for stream in (sys.stdout, sys.stderr):
        # A test, or a program that calls this, may have put another kind of object there.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

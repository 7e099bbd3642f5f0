"""Prints what lets a shell complete the command: its words and options, files where a file is meant."""

from __future__ import annotations

import argparse
from pathlib import Path

from migrate_ckpt.cli.exit_codes import DONE

SHELLS = ("bash", "zsh", "tcsh")


def print_completion(parser: argparse.ArgumentParser, shell: str) -> int:
    # Loaded only here: no other command has a use for it.
    import shtab

    _mean_files(parser)
    print(shtab.complete(parser, shell))
    return DONE


def _mean_files(parser: argparse.ArgumentParser) -> None:
    """Say of each argument that is a path that a file or folder is meant."""
    import shtab

    for action in parser._actions:
        if action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        if isinstance(action, argparse._SubParsersAction):
            for word in action.choices.values():
                _mean_files(word)

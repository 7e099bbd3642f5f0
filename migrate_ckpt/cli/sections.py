"""The option that says where in a checkpoint the state dict stands."""

from __future__ import annotations

from argparse import Namespace

from migrate_ckpt.cli.exit_codes import refuse_usage
from migrate_ckpt.operations.paths import to_path


def section_of(options: Namespace) -> tuple[str, ...] | None:
    """Return the path that --section names; None without it. One that is none ends the command."""
    try:
        return None if options.section is None else to_path(options.section)
    except ValueError as error:
        refuse_usage(str(error))

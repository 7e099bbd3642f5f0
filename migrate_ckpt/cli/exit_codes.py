"""The exit codes, and which error ends with which."""

from __future__ import annotations

import sys
from typing import NoReturn

from migrate_ckpt.errors import (
    FolderError,
    HistoryError,
    ManifestNotMet,
    MigrationFailed,
    TargetExists,
    UndoRefused,
    UnknownMigration,
    UnreadableCheckpoint,
    UnwritableCheckpoint,
)

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
    (ManifestNotMet, MIGRATION_FAILED),
    (UnwritableCheckpoint, MIGRATION_FAILED),
    (FolderError, USAGE),
    (UnknownMigration, USAGE),
    (TargetExists, USAGE),
    (UndoRefused, HISTORY_REFUSED),
    (OSError, USAGE),
)


def exit_code_of(error: Exception) -> int:
    return next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), USAGE)


def refuse_usage(message: str) -> NoReturn:
    """End the command because of how it was called."""
    print(f"migrate-ckpt: {message}", file=sys.stderr)
    raise SystemExit(USAGE)

"""What must be so for this service to take a checkpoint: each point is checked by trying it."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from app.errors import ServiceError
from app.sandbox import Sandbox
from migrate_ckpt import FolderError, read_sets

OK = "ok"


async def check(*, migrations_folder: Path, scratch_root: Path, sandbox: Sandbox) -> dict[str, str]:
    """Return for each point "ok", or what is wrong."""
    return {
        "migrations": await asyncio.to_thread(_check_migrations, migrations_folder),
        "sandbox": await _check_sandbox(sandbox),
        "scratch": await asyncio.to_thread(_check_scratch, scratch_root),
    }


def _check_migrations(folder: Path) -> str:
    try:
        read_sets(folder)
    except FolderError as error:
        return str(error)
    return OK


async def _check_sandbox(sandbox: Sandbox) -> str:
    # Where it has died it is started again: to a service that is not ready no run would be sent.
    try:
        await sandbox.start()
    except ServiceError as error:
        return str(error)
    return OK


def _check_scratch(folder: Path) -> str:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        return f"The scratch folder cannot be written to: {error.strerror}."
    return OK

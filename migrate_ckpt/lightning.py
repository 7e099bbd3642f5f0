"""A callback for Lightning that stamps what a training saves.

The Lightning that the training uses is taken, `lightning` or `pytorch_lightning`: neither is imported before it is.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from functools import cache
from os import PathLike
from typing import Any

from migrate_ckpt.folder import DEFAULT_SET, MigrationSet, as_set
from migrate_ckpt.stamping import stamp

_LIGHTNINGS = ("lightning.pytorch", "pytorch_lightning")


def stamp_migrations(
    folder: str | PathLike[str] | MigrationSet, *, set_name: str = DEFAULT_SET
) -> Any:
    """Return a Lightning `Callback` that writes the set's migrations into every checkpoint it saves.

    `Trainer(callbacks=[stamp_migrations("migrations")])`. The folder is read now: what this
    training saves is of the code that it started with, whatever is added to the folder later.

    Lightning asks no callback when it saves weights only (`save_weights_only=True`). There, put
    `checkpoint.update(stamp(checkpoint, folder))` into the module's own `on_save_checkpoint`.

    Raises:
        FolderError: The folder of migrations cannot be used.
        ModuleNotFoundError: Neither Lightning is installed.
    """
    return _callback_class(tuple(_callbacks()))(as_set(folder, set_name))


def _callbacks() -> Iterator[type]:
    """The `Callback` of each Lightning that is loaded, else of the first that is installed."""
    loaded = [name for name in _LIGHTNINGS if name in sys.modules]
    for name in loaded or (_import_one(),):
        callback: type = sys.modules[name].Callback
        yield callback


def _import_one() -> str:
    for name in _LIGHTNINGS:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        return name
    raise ModuleNotFoundError(
        "Stamping with a callback needs Lightning: install lightning or pytorch-lightning, or use "
        "migrate_ckpt.stamp in your own code."
    )


@cache
def _callback_class(bases: tuple[type, ...]) -> type:
    return type("StampMigrations", (_StampMigrations, *bases), {"__reduce__": _reduce})


def _reduce(self: _StampMigrations) -> Any:
    # The class is made when it is asked for, so a spawned process has to ask as well.
    return stamp_migrations, (self.migrations,)


class _StampMigrations:
    """What the callback does, whichever Lightning it is for."""

    def __init__(self, migrations: MigrationSet) -> None:
        self.migrations = migrations

    def on_save_checkpoint(
        self, trainer: object, pl_module: object, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint.update(stamp(checkpoint, self.migrations))

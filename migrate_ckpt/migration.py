"""A migration, the checkpoint it changes, and the names of the original library for both."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeAlias

CkptType: TypeAlias = MutableMapping[str, Any]
MigrationCallback: TypeAlias = Callable[[CkptType], CkptType]


@dataclass
class Migration:
    """A named function from checkpoint to checkpoint.

    The title and the digest are known for a migration that was read from a file.
    """

    name: str
    callback: MigrationCallback
    title: str = ""
    digest: str | None = None

"""One hostile file, and what must become of it."""

from __future__ import annotations

from dataclasses import dataclass

PRESERVED = "preserved"
"""The file is migrated, and what is hostile in it is carried along without being run."""
DAMAGED = "not_a_checkpoint"
UNSAFE = "unsafe_pickle"
BOMB = "bomb"
FAILED = "migration_failed"
HISTORY = "invalid_history"
UNKNOWN_HISTORY = "incompatible_history"


@dataclass(frozen=True)
class Attack:
    """A hostile file.

    Attributes:
        name: Unique; begins with the row of the threat table in the README.
        data: The bytes of the file.
        outcomes: What may become of it: PRESERVED, or the `error_type` that it is refused with.
        keeps: Globals that the migrated file still names.
        drops: Globals that it does not name any more.
    """

    name: str
    data: bytes
    outcomes: tuple[str, ...]
    keeps: tuple[str, ...] = ()
    drops: tuple[str, ...] = ()

    @property
    def threat(self) -> str:
        return self.name.partition("-")[0]

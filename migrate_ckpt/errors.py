"""Every error of the library: each says what failed, why and what to do, and carries its data.

MigrateCkptError
├── UnreadableCheckpoint            not a checkpoint we read, or a damaged one
│   ├── UnsafePickle                the pickle does what no pickler writes
│   ├── TooLarge                    a limit of the reader was passed
│   └── RefusedGlobals              it names what is not on the list of what is allowed
├── UnwritableCheckpoint            the migrated value cannot be written
├── TargetExists                    the file to write is there already
├── UndoRefused                     the undo bundle is not of this file, or damaged
├── FolderError                     the folder of migrations cannot be used
│   ├── InvalidMigrationFile        one of its files cannot
│   ├── InvalidManifest             its manifest cannot be read
│   ├── InvalidFixture              the fixture of one of its migrations cannot be read
│   ├── OrderMismatch               alphabetical and numeric order disagree
│   └── UnknownSet                  no set of this name
├── UnknownMigration                `to` names no migration of the set
├── HistoryError
│   ├── InvalidHistory              the checkpoint's history is not what a history looks like
│   └── HistoryRefused              a good history that the policy does not allow to build on
├── MigrationFailed                 a migration raised, or did not return a checkpoint
│   └── RequirementsNotMet          it needs what the checkpoint does not have, and was not applied
├── ManifestNotMet                  the migrated checkpoint is not what the set's manifest says
├── OperationError                  an operation cannot do to this checkpoint what it says
│   ├── SectionNotFound             the section or path it works on is not there, or not the only one
│   ├── KeysNotFound                it finds none of its keys, or not all it names
│   ├── IncompleteGroup             some keys of a group are there, others are not
│   ├── KeyCollision                two things would come to stand under one key
│   ├── NotInvertible               it cannot be undone, because it gave something up
│   └── OptimizerNotFollowed        what it does to parameters cannot be done to the optimizer's states
└── ForeignObjectError (TypeError)  a foreign object was asked for what it cannot answer

HistoryWarning (UserWarning)        what the in-memory functions say instead of refusing
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from migrate_ckpt.differences import Difference
    from migrate_ckpt.plan import Plan
    from migrate_ckpt.report import Report


class HistoryWarning(UserWarning):
    """What a history says and a function without a report would otherwise keep to itself."""


class MigrateCkptError(Exception):
    """The root: catch this one to catch them all."""

    error_type: ClassVar[str] = "error"
    """A stable word for programs; the message is for people."""
    retryable: ClassVar[bool] = False
    """Whether the same request may succeed later."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, ready for JSON: the type, the message and what the error carries."""
        return {
            "error_type": self.error_type,
            "message": str(self),
            "retryable": self.retryable,
            **{key: value for key, value in self._data().items() if value is not None},
        }

    def _data(self) -> dict[str, Any]:
        return {}

    def __reduce__(self) -> tuple[Any, ...]:
        # The default would call the class with the message alone and lose the rest on its way
        # out of a worker process.
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(
    cls: type[MigrateCkptError], args: tuple[Any, ...], state: dict[str, Any]
) -> MigrateCkptError:
    error = cls.__new__(cls, *args)
    error.__dict__.update(state)
    return error


class UnreadableCheckpoint(MigrateCkptError):
    """The file is no checkpoint of a format we read, or it is damaged."""

    error_type = "not_a_checkpoint"


class UnsafePickle(UnreadableCheckpoint):
    """The pickle in the file holds instructions that no pickler writes."""

    error_type = "unsafe_pickle"


class TooLarge(UnreadableCheckpoint):
    """The file asks for more than a limit of the reader allows."""

    error_type = "bomb"


class RefusedGlobals(UnreadableCheckpoint):
    """The file names classes or functions that are not on the list of those allowed."""

    error_type = "refused_globals"

    def __init__(self, message: str, *, globals: Sequence[str]) -> None:
        super().__init__(message)
        self.globals = tuple(globals)

    def _data(self) -> dict[str, Any]:
        return {"globals": list(self.globals)}


class UnwritableCheckpoint(MigrateCkptError):
    """The migrated value holds something that cannot be written into a checkpoint."""

    error_type = "unwritable"

    def __init__(self, message: str, *, where: str | None = None) -> None:
        super().__init__(message)
        self.where = where

    def _data(self) -> dict[str, Any]:
        return {"where": self.where}


class TargetExists(MigrateCkptError):
    """Another file is in the target's place."""

    error_type = "target_exists"

    def __init__(self, message: str, *, path: Path) -> None:
        super().__init__(message)
        self.path = path


class UndoRefused(MigrateCkptError):
    """A file cannot be put back: the undo bundle is of another one, or a migration tells too little of before."""

    error_type = "undo_refused"

    def __init__(self, message: str, *, path: Path) -> None:
        super().__init__(message)
        self.path = path


class FolderError(MigrateCkptError):
    """The folder of migrations cannot be read or used."""

    error_type = "invalid_folder"

    def __init__(self, message: str, *, path: Path) -> None:
        super().__init__(message)
        self.path = path


class InvalidMigrationFile(FolderError):
    """One file of the folder is no migration: it does not parse, import or define `handle`."""

    error_type = "invalid_migration"

    def __init__(self, message: str, *, path: Path, name: str) -> None:
        super().__init__(message, path=path)
        self.name = name

    def _data(self) -> dict[str, Any]:
        return {"migration": self.name}


class InvalidManifest(FolderError):
    """A manifest cannot be read, or is none."""

    error_type = "invalid_manifest"


class InvalidFixture(FolderError):
    """The fixture of a migration cannot be read, or is none."""

    error_type = "invalid_fixture"


class OrderMismatch(FolderError):
    """The alphabetical order of the names is not their numeric one."""

    error_type = "order_mismatch"

    def __init__(self, message: str, *, path: Path, names: Sequence[str]) -> None:
        super().__init__(message, path=path)
        self.names = tuple(names)

    def _data(self) -> dict[str, Any]:
        return {"names": list(self.names)}


class UnknownSet(FolderError):
    """The folder has no set of this name; `names` are those it has."""

    error_type = "unknown_set"

    def __init__(self, message: str, *, path: Path, name: str, names: Sequence[str]) -> None:
        super().__init__(message, path=path)
        self.name = name
        self.names = tuple(names)

    def _data(self) -> dict[str, Any]:
        return {"set": self.name, "names": list(self.names)}


class UnknownMigration(MigrateCkptError):
    """The migration to stop after is none of the set; `names` are those of the set."""

    error_type = "unknown_migration"

    def __init__(self, message: str, *, name: str, names: Sequence[str]) -> None:
        super().__init__(message)
        self.name = name
        self.names = tuple(names)

    def _data(self) -> dict[str, Any]:
        return {"migration": self.name, "names": list(self.names)}


class HistoryError(MigrateCkptError):
    """Something is wrong with the history inside the checkpoint."""

    error_type = "history"


class InvalidHistory(HistoryError):
    """What stands in the history's place is no history of ours or of the original library."""

    error_type = "invalid_history"


class HistoryRefused(HistoryError):
    """The history is well-formed, but the policy refuses to migrate on top of it."""

    error_type = "incompatible_history"

    def __init__(self, message: str, *, plan: Plan) -> None:
        super().__init__(message)
        self.plan = plan

    def _data(self) -> dict[str, Any]:
        return {"plan": self.plan.to_dict()}


class MigrationFailed(MigrateCkptError):
    """A migration raised, or returned something else than a checkpoint.

    `position` counts from one among the `count` migrations of the run; `report` tells what had
    been done before.
    """

    error_type = "migration_failed"

    def __init__(
        self, message: str, *, name: str, position: int, count: int, report: Report
    ) -> None:
        super().__init__(message)
        self.name = name
        self.position = position
        self.count = count
        self.report = report

    def _data(self) -> dict[str, Any]:
        cause = self.__cause__
        return {
            "migration": self.name,
            "position": self.position,
            "count": self.count,
            "report": self.report.to_dict(),
            "cause": cause.to_dict() if isinstance(cause, MigrateCkptError) else None,
        }


class RequirementsNotMet(MigrationFailed):
    """The checkpoint lacks what a migration requires; `missing` says what, a sentence each."""

    error_type = "requirements_not_met"

    def __init__(self, message: str, *, missing: Sequence[str], **facts: Any) -> None:
        super().__init__(message, **facts)
        self.missing = tuple(missing)

    def _data(self) -> dict[str, Any]:
        return {**super()._data(), "missing": list(self.missing)}


class ManifestNotMet(MigrateCkptError):
    """The migrated checkpoint is not what the set's manifest says; nothing was written.

    `differences` are all there are; `to_dict` has the first `MAX_DIFFERENCES` and their number.
    `report` tells what ran.
    """

    error_type = "manifest_not_met"
    MAX_DIFFERENCES: ClassVar[int] = 100

    def __init__(self, message: str, *, differences: Sequence[Difference], report: Report) -> None:
        super().__init__(message)
        self.differences = tuple(differences)
        self.report = report

    def _data(self) -> dict[str, Any]:
        shown = self.differences[: self.MAX_DIFFERENCES]
        return {
            "differences": [difference.to_dict() for difference in shown],
            "difference_count": len(self.differences),
            "report": self.report.to_dict(),
        }


class OperationError(MigrateCkptError):
    """An operation cannot do what it says to this checkpoint, which it has left as it was.

    `operation` is the operation as a text; `keys` are the keys or paths that the error is about.
    """

    error_type = "operation_failed"

    def __init__(self, message: str, *, operation: str = "", keys: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.operation = operation
        self.keys = tuple(keys)

    def _data(self) -> dict[str, Any]:
        return {"operation": self.operation or None, "keys": list(self.keys) or None}


class SectionNotFound(OperationError):
    """The section or path that an operation works on is not there, or is not the only one."""

    error_type = "section_not_found"


class KeysNotFound(OperationError):
    """An operation finds none of the keys that it is for; `keys` are those it looked for."""

    error_type = "keys_not_found"


class IncompleteGroup(OperationError):
    """Some keys of a group are there, and those in `keys` are not."""

    error_type = "incomplete_group"


class KeyCollision(OperationError):
    """Two things would come to stand under one key; `keys` are those keys."""

    error_type = "key_collision"


class NotInvertible(OperationError):
    """The operation gives up something that its result no longer has."""

    error_type = "not_invertible"


class OptimizerNotFollowed(OperationError):
    """What is done to parameters cannot be done to the optimizer's states, or not for certain."""

    error_type = "optimizer_not_followed"


class ForeignObjectError(MigrateCkptError, TypeError):
    """A migration asked a foreign object for something only its real class could answer."""

    error_type = "foreign_object"

"""Bring old PyTorch checkpoints up to date by running small, reviewed migrations over them.

Importing this package needs the standard library only; torch is loaded when a tensor is met.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from migrate_ckpt.adopting.adopted import Adopted as Adopted
    from migrate_ckpt.adopting.adopting import adopt as adopt
    from migrate_ckpt.changes import Change as Change
    from migrate_ckpt.changes import Preview as Preview
    from migrate_ckpt.differences import Difference as Difference
    from migrate_ckpt.drafting.comparing import draft_migration as draft_migration
    from migrate_ckpt.drafting.draft import Draft as Draft
    from migrate_ckpt.errors import FolderError as FolderError
    from migrate_ckpt.errors import ForeignObjectError as ForeignObjectError
    from migrate_ckpt.errors import HistoryError as HistoryError
    from migrate_ckpt.errors import HistoryRefused as HistoryRefused
    from migrate_ckpt.errors import HistoryWarning as HistoryWarning
    from migrate_ckpt.errors import IncompleteGroup as IncompleteGroup
    from migrate_ckpt.errors import InvalidFixture as InvalidFixture
    from migrate_ckpt.errors import InvalidHistory as InvalidHistory
    from migrate_ckpt.errors import InvalidManifest as InvalidManifest
    from migrate_ckpt.errors import InvalidMigrationFile as InvalidMigrationFile
    from migrate_ckpt.errors import KeyCollision as KeyCollision
    from migrate_ckpt.errors import KeysNotFound as KeysNotFound
    from migrate_ckpt.errors import ManifestNotMet as ManifestNotMet
    from migrate_ckpt.errors import MigrateCkptError as MigrateCkptError
    from migrate_ckpt.errors import MigrationFailed as MigrationFailed
    from migrate_ckpt.errors import NotInvertible as NotInvertible
    from migrate_ckpt.errors import OperationError as OperationError
    from migrate_ckpt.errors import OptimizerNotFollowed as OptimizerNotFollowed
    from migrate_ckpt.errors import OrderMismatch as OrderMismatch
    from migrate_ckpt.errors import RefusedGlobals as RefusedGlobals
    from migrate_ckpt.errors import RequirementsNotMet as RequirementsNotMet
    from migrate_ckpt.errors import SectionNotFound as SectionNotFound
    from migrate_ckpt.errors import TargetExists as TargetExists
    from migrate_ckpt.errors import TooLarge as TooLarge
    from migrate_ckpt.errors import UndoRefused as UndoRefused
    from migrate_ckpt.errors import UnknownMigration as UnknownMigration
    from migrate_ckpt.errors import UnknownSet as UnknownSet
    from migrate_ckpt.errors import UnreadableCheckpoint as UnreadableCheckpoint
    from migrate_ckpt.errors import UnsafePickle as UnsafePickle
    from migrate_ckpt.errors import UnwritableCheckpoint as UnwritableCheckpoint
    from migrate_ckpt.file_run import Run as Run
    from migrate_ckpt.file_run import RunOptions as RunOptions
    from migrate_ckpt.files import inspect_file as inspect_file
    from migrate_ckpt.files import migrate_file as migrate_file
    from migrate_ckpt.files import plan_file as plan_file
    from migrate_ckpt.files import read_checkpoint as read_checkpoint
    from migrate_ckpt.files import run_file as run_file
    from migrate_ckpt.files import write_checkpoint as write_checkpoint
    from migrate_ckpt.folder import MigrationFile as MigrationFile
    from migrate_ckpt.folder import MigrationSet as MigrationSet
    from migrate_ckpt.folder import read_folder as read_folder
    from migrate_ckpt.folder import read_set as read_set
    from migrate_ckpt.folder import read_sets as read_sets
    from migrate_ckpt.foreign import ForeignGlobal as ForeignGlobal
    from migrate_ckpt.foreign import ForeignObject as ForeignObject
    from migrate_ckpt.foreign import recipe as recipe
    from migrate_ckpt.formats.allowed_globals import read_allowed_globals as read_allowed_globals
    from migrate_ckpt.formats.conversion import Format as Format
    from migrate_ckpt.formats.partial_source import BytesNeeded as BytesNeeded
    from migrate_ckpt.formats.pieces import Pieces as Pieces
    from migrate_ckpt.formats.pieces import Range as Range
    from migrate_ckpt.history import ckpt_migration_key as ckpt_migration_key
    from migrate_ckpt.history_files import repair_file as repair_file
    from migrate_ckpt.in_memory import migrate_ckpt as migrate_ckpt
    from migrate_ckpt.in_memory import migrate_from_folder as migrate_from_folder
    from migrate_ckpt.inspection import Inspection as Inspection
    from migrate_ckpt.loader import get_folder_migrations as get_folder_migrations
    from migrate_ckpt.manifest import Manifest as Manifest
    from migrate_ckpt.manifest import read_manifest as read_manifest
    from migrate_ckpt.manifest_files import manifest_of_file as manifest_of_file
    from migrate_ckpt.manifest_files import verify_file as verify_file
    from migrate_ckpt.manifest_sources import manifest_of as manifest_of
    from migrate_ckpt.migration import CkptType as CkptType
    from migrate_ckpt.migration import Migration as Migration
    from migrate_ckpt.migration import MigrationCallback as MigrationCallback
    from migrate_ckpt.new_file import new_migration as new_migration
    from migrate_ckpt.plan import Plan as Plan
    from migrate_ckpt.plan import Policy as Policy
    from migrate_ckpt.plan import Step as Step
    from migrate_ckpt.report import Report as Report
    from migrate_ckpt.reverting import revert_file as revert_file
    from migrate_ckpt.squashing.squash import Squashed as Squashed
    from migrate_ckpt.squashing.squash import squash as squash
    from migrate_ckpt.stamping import stamp as stamp
    from migrate_ckpt.verifying import Verdict as Verdict

__version__ = "0.1.0"

_MODULES = {
    "adopting.adopted": ("Adopted",),
    "adopting.adopting": ("adopt",),
    "changes": ("Change", "Preview"),
    "differences": ("Difference",),
    "drafting.comparing": ("draft_migration",),
    "drafting.draft": ("Draft",),
    "errors": (
        "FolderError",
        "ForeignObjectError",
        "HistoryError",
        "HistoryRefused",
        "HistoryWarning",
        "IncompleteGroup",
        "InvalidFixture",
        "InvalidHistory",
        "InvalidManifest",
        "InvalidMigrationFile",
        "KeyCollision",
        "KeysNotFound",
        "ManifestNotMet",
        "MigrateCkptError",
        "MigrationFailed",
        "NotInvertible",
        "OperationError",
        "OptimizerNotFollowed",
        "OrderMismatch",
        "RefusedGlobals",
        "RequirementsNotMet",
        "SectionNotFound",
        "TargetExists",
        "TooLarge",
        "UndoRefused",
        "UnknownMigration",
        "UnknownSet",
        "UnreadableCheckpoint",
        "UnsafePickle",
        "UnwritableCheckpoint",
    ),
    "file_run": ("Run", "RunOptions"),
    "files": (
        "inspect_file",
        "migrate_file",
        "plan_file",
        "read_checkpoint",
        "run_file",
        "write_checkpoint",
    ),
    "folder": (
        "MigrationFile",
        "MigrationSet",
        "read_folder",
        "read_set",
        "read_sets",
    ),
    "foreign": ("ForeignGlobal", "ForeignObject", "recipe"),
    "formats.allowed_globals": ("read_allowed_globals",),
    "formats.conversion": ("Format",),
    "formats.partial_source": ("BytesNeeded",),
    "formats.pieces": ("Pieces", "Range"),
    "history": ("ckpt_migration_key",),
    "history_files": ("repair_file",),
    "inspection": ("Inspection",),
    "in_memory": ("migrate_ckpt", "migrate_from_folder"),
    "loader": ("get_folder_migrations",),
    "manifest": ("Manifest", "read_manifest"),
    "manifest_files": ("manifest_of_file", "verify_file"),
    "manifest_sources": ("manifest_of",),
    "migration": ("CkptType", "Migration", "MigrationCallback"),
    "new_file": ("new_migration",),
    "plan": ("Plan", "Policy", "Step"),
    "report": ("Report",),
    "reverting": ("revert_file",),
    "squashing.squash": ("Squashed", "squash"),
    "stamping": ("stamp",),
    "verifying": ("Verdict",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(("__version__", *_MODULE_OF))


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

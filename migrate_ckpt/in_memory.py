"""The original API: migrations over a checkpoint in memory, which itself is never changed."""

from __future__ import annotations

import copy
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from os import PathLike

from migrate_ckpt.errors import HistoryWarning
from migrate_ckpt.folder import read_folder
from migrate_ckpt.history import read_history
from migrate_ckpt.loader import load_migrations
from migrate_ckpt.manifest import Manifest
from migrate_ckpt.migration import CkptType, Migration
from migrate_ckpt.plan import Plan, make_plan
from migrate_ckpt.report import Report
from migrate_ckpt.runner import run_plan
from migrate_ckpt.verifying import refuse_unmet

logger = logging.getLogger(__name__)


def migrate_ckpt(
    ckpt: CkptType, migrations: Sequence[Migration]
) -> tuple[CkptType, list[Migration]]:
    """Run what is pending and return the new checkpoint and the migrations that ran.

    The checkpoint passed in is never changed: it is copied once if there is anything to run, and
    returned itself if there is nothing. The history is kept under `ckpt_migration_key`. It is
    never refused; what it says of a wrong folder or an edited migration is a `HistoryWarning`.

    Raises:
        InvalidHistory: What the checkpoint has under that key is no list of names.
        MigrationFailed: A migration raised or returned no checkpoint.
    """
    plan = make_plan(migrations, read_history(ckpt), allow_unknown_history=True)
    return _run(ckpt, plan, lambda: migrations)


def migrate_from_folder(
    ckpt: CkptType, path: str | PathLike[str]
) -> tuple[CkptType, list[Migration]]:
    """Do what `migrate_ckpt` does, with a folder's migrations; imports them only to run them.

    Raises:
        ManifestNotMet: The folder declares a manifest, and the result is not as it says.
    """
    folder = read_folder(path)
    plan = make_plan(
        folder.files, read_history(ckpt), set_digest=folder.digest, allow_unknown_history=True
    )
    return _run(ckpt, plan, lambda: load_migrations(folder), folder.manifest)


def _run(
    ckpt: CkptType,
    plan: Plan,
    load: Callable[[], Sequence[Migration]],
    manifest: Manifest | None = None,
) -> tuple[CkptType, list[Migration]]:
    """Run a plan on a copy of a checkpoint; loads no migration if there is nothing to run."""
    _warn(plan)
    if not plan.to_run:
        refuse_unmet(manifest, ckpt, Report(plan))
        return ckpt, []
    migrations = load()
    migrated, report = run_plan(_copy(ckpt), plan, migrations, history_in_metadata=False)
    refuse_unmet(manifest, migrated, report)
    if report.optimizer_not_followed:
        logger.warning("optimizer not followed: %s", ", ".join(report.optimizer_not_followed))
    return migrated, [m for m in migrations if m.name in report.ran]


def _copy(ckpt: CkptType) -> CkptType:
    # Where nobody has loaded torch there is no tensor.
    if "torch" not in sys.modules:
        return copy.deepcopy(ckpt)
    from migrate_ckpt.copying import copy_sharing_storages

    copied: CkptType = copy_sharing_storages(ckpt)
    return copied


def _warn(plan: Plan) -> None:
    if plan.has_unknown_history:
        _say("The history names none of these migrations, so all of them run", plan.unknown)
    if plan.changed:
        _say("Edited since they were applied, and not run again", plan.changed)


def _say(text: str, names: Sequence[str]) -> None:
    # Past _say, _warn, _run and migrate_ckpt or migrate_from_folder: the caller's line.
    warnings.warn(f"{text}: {', '.join(names)}.", HistoryWarning, stacklevel=5)

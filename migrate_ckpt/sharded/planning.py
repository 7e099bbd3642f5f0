"""What the kinds of sharded checkpoints have in common: a plan for a checkpoint, and a name for its state."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from migrate_ckpt.file_run import RunOptions
from migrate_ckpt.folder import MigrationSet
from migrate_ckpt.history import History, read_history
from migrate_ckpt.plan import Plan, make_plan


def plan_ckpt(ckpt: Mapping[str, Any], migrations: MigrationSet, options: RunOptions) -> Plan:
    """Plan a set for a checkpoint that was read.

    Raises:
        What `make_plan` raises.
    """
    return make_plan(
        migrations.files,
        read_history(ckpt),
        set_name=migrations.name,
        set_digest=migrations.digest,
        to=options.to,
        policy=options.policy,
        allow_unknown_history=options.allow_unknown_history,
    )


def tag_of(history: History) -> str:
    """Return what tells the files of one state of a checkpoint from those of another."""
    records = [[record.name, record.set, record.digest] for record in history.records]
    return hashlib.sha256(json.dumps(records).encode()).hexdigest()[:8]

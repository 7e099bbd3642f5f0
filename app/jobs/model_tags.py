"""The tags by which the registry knows what became of a version."""

from __future__ import annotations

# Whose migration a version is; no version that has it is migrated.
MIGRATED_FROM = "migrated_from"
STATUS = "migrate_ckpt.status"
REASON = "migrate_ckpt.reason"
MIGRATED_TO = "migrate_ckpt.migrated_to"
JOB = "migrate_ckpt.job"

"""What a run in the sandbox is asked, and where in its scratch folder the answer lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from migrate_ckpt import Format, Policy

UPLOAD_NAME = "upload"
OUTCOME_NAME = "outcome.json"
NEW_BYTES_NAME = "new"
# Offsets and counts of what is there of an upload that was fetched in part.
PRESENT_NAME = "present.json"

# How a run ends that has written its outcome. Not 0: a migration may end the process with that.
DONE_STATUS = 113


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What one run is to do with the upload in its scratch folder; plain data, it travels as JSON."""

    action: Literal["migrate", "plan", "inspect"]
    scratch_folder: str
    migrations_folder: str = ""
    set_name: str = "default"
    set_digest: str = ""
    to: str | None = None
    policy: Policy = "skip-missed"
    allow_unknown_history: bool = False
    format: Format | None = None
    changes: bool = False
    inspection: bool = False
    allowed_globals: tuple[str, ...] | None = None
    fingerprint: str | None = None

"""The name of a result: what a run's output depends on, as one digest."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import version

import migrate_ckpt


@dataclass(frozen=True, slots=True)
class Versions:
    """The versions that a result depends on, read without loading torch."""

    migrate_ckpt: str
    python: str
    torch: str


@lru_cache(maxsize=1)
def installed_versions() -> Versions:
    return Versions(migrate_ckpt.__version__, platform.python_version(), version("torch"))


def fingerprint(
    *,
    input_digest: str,
    set_name: str,
    set_digest: str,
    to: str | None,
    policy: str,
    allow_unknown_history: bool,
    format: str | None = None,
    versions: Versions,
) -> str:
    """Return the SHA-256, in hex, of everything a result depends on: same name, same bytes.

    The set's name is among it because it is written into the history, the permission for an unknown
    history because it decides whether there is a result. No format means that of the source.
    """
    facts = {
        "input": input_digest,
        "set": set_name,
        "set_digest": set_digest,
        "to": to,
        "policy": policy,
        "allow_unknown_history": allow_unknown_history,
        "format": format,
        "versions": asdict(versions),
    }
    canonical = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()

"""Versions of registered models as jobs name them, and what is written down of a migration beside one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import quote, unquote

from app.jobs.job import MODELS, JobRequest
from app.parameters import RunParameters

MAX_NAMED = 20


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One version of a registered model, as MLflow's registry says it."""

    name: str
    version: str
    run_id: str | None = None
    status: str = "READY"
    tags: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> ModelVersion:
        tags = {tag["key"]: tag["value"] for tag in found.get("tags", ())}
        run_id = found.get("run_id") or None
        return cls(found["name"], str(found["version"]), run_id, found.get("status", ""), tags)

    def __str__(self) -> str:
        return f"{MODELS}{self.name}/{self.version}"


def request_for(
    version: ModelVersion, *, url: str, models: Sequence[tuple[str, str]], again: str = ""
) -> JobRequest | None:
    """Return the job for a version, the same each time; None where no set is meant for its model.

    Args:
        version: the one that is to be migrated.
        url: of the registry.
        models: patterns of names, each with the set for the models that it fits; the first one counts.
        again: what tells this job from an earlier one that failed.
    """
    for pattern, set_name in models:
        if fnmatchcase(version.name, pattern):
            key = f"{url}\n{version.name}\n{version.version}\n{again}"
            job_id = hashlib.sha256(key.encode()).hexdigest()[:32]
            source = f"{MODELS}{quote(version.name, safe='')}/{version.version}"
            return JobRequest(job_id, None, None, "", RunParameters(set=set_name), source=source)
    return None


def parse_version(source: str) -> tuple[str, str]:
    """Return name and version of a job's source."""
    name, _, version = source.removeprefix(MODELS).rpartition("/")
    return unquote(name), version


def tags_of(changed: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return what a new version says of its migration: values where one file changed, else path=value for each."""
    reports = {path: made["report"] for path, made in changed.items()}
    first = next(iter(reports.values()))
    return {
        "migrate_ckpt.set": first["set"],
        "migrate_ckpt.set_digest": first["set_digest"] or "",
        "migrate_ckpt.fingerprint": _joined(changed, "fingerprint"),
        "migrate_ckpt.input_sha256": _joined(changed, "digest"),
        "migrate_ckpt.output_sha256": _joined(changed, "result_digest"),
        "migrate_ckpt.migrations": " ".join(
            dict.fromkeys(name for report in reports.values() for name in report["ran"])
        ),
    }


def _joined(changed: Mapping[str, Mapping[str, Any]], fact: str) -> str:
    if len(changed) == 1:
        return str(next(iter(changed.values()))[fact])
    return " ".join(f"{path}={made[fact]}" for path, made in changed.items())


def describe_migration(version: ModelVersion, changed: Mapping[str, Mapping[str, Any]]) -> str:
    """Say what was done to a version, for a person who looks at the new one."""
    lines = [f"Version {version.version}, brought up to date by migrate-ckpt."]
    for path, made in list(changed.items())[:MAX_NAMED]:
        ran = ", ".join(made["report"]["ran"])
        lines.append(f"{path}: {ran}.")
    if len(changed) > MAX_NAMED:
        lines.append(f"… and {len(changed) - MAX_NAMED} more files.")
    return "\n".join(lines)

"""The metrics that are looked up when they are asked for: queue, disk, and which migrations are served."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.datastructures import State

from app.fingerprint import installed_versions
from app.metrics import Live
from app.scratch_room import free_bytes


def live_metrics(state: State) -> tuple[Live, ...]:
    """Return what is to be known of the parts that an application keeps here."""

    def number(name: str, description: str, attribute: str) -> Live:
        return Live(name, description, (), lambda: {(): getattr(state.admission, attribute)})

    return (
        number("requests_admitted", "Requests that hold a place.", "admitted"),
        number("queue_depth", "Runs that wait for their turn.", "waiting"),
        number("runs_active", "Runs that are under way.", "running"),
        Live(
            "jobs_queued",
            "Jobs that wait.",
            (),
            lambda: {(): state.jobs.waiting} if state.jobs is not None else {},
        ),
        Live(
            "scratch_free_bytes",
            "What can still be written to the scratch disk.",
            (),
            lambda: {(): free_bytes(state.scratch_root)},
        ),
        Live(
            "migration_set_info",
            "The sets of migrations that are served.",
            ("set", "digest"),
            lambda: dict.fromkeys(state.sets.current.digests().items(), 1.0),
        ),
        Live(
            "migrations_stale",
            "Whether the folder of migrations has changed and cannot be served as it is.",
            (),
            lambda: {(): float(state.sets.problem is not None)},
        ),
        Live("build_info", "The versions in use.", ("version", "python", "torch"), _build),
    )


def _build() -> Mapping[tuple[str, ...], float]:
    versions = installed_versions()
    return {(versions.migrate_ckpt, versions.python, versions.torch): 1.0}

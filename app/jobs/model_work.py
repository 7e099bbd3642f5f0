"""The work of jobs whose checkpoints are those of a registered model's version, beside that of all others.

Their steps have the names of other jobs' steps: what there is to migrate is found (fetch), each checkpoint
is migrated and its result kept (migrate), and the results become the model's next version (store). Whatever
it comes to is written down in the registry, as tags of the version.
"""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

from app.digests import digest_of
from app.errors import ServiceError
from app.jobs.delivery import Attempt, Delivery
from app.jobs.engine import Find, Say, Step
from app.jobs.job import JobRequest, Progress
from app.jobs.model_tags import JOB, MIGRATED_FROM, MIGRATED_TO, REASON, STATUS
from app.jobs.work import MigrationWork
from app.registry.artifacts import MODEL_FILE, Artifact, Artifacts, open_artifacts
from app.registry.mlflow import MlflowClient
from app.registry.versions import ModelVersion, describe_migration, parse_version, tags_of
from app.settings import Settings
from app.storage.attempts import attempts
from app.storage.blocks import blocks_of
from app.storage.transfers import Transfers
from migrate_ckpt import MigrateCkptError

logger = logging.getLogger(__name__)

# What `mlflow.pytorch.log_model` writes, and `load_model` reads: a whole module, pickled.
WHOLE_MODULE = "data/model.pth"
NEW_FOLDER = "model"


class ModelWork:
    """The work of a worker that reaches the registry."""

    def __init__(
        self,
        migration_work: MigrationWork,
        client: MlflowClient,
        *,
        settings: Settings,
        transfers: Transfers,
    ) -> None:
        self._migration_work = migration_work
        self._client = client
        self._patterns = settings.mlflow_files
        self._aliases = settings.mlflow_aliases
        self._transfers = transfers
        own: Mapping[str, Step] = {
            "fetch": self._find_checkpoints,
            "migrate": self._migrate_all,
            "store": self._register,
        }
        self.steps: Mapping[str, Step] = {
            name: partial(self._choose, step, own[name])
            for name, step in migration_work.steps.items()
        }

    async def end(self, request: JobRequest) -> None:
        await self._migration_work.end(request)

    async def deliver(self, delivery: Delivery, find: Find) -> tuple[Delivery, Attempt] | None:
        return await self._migration_work.deliver(delivery, find)

    async def _choose(
        self, theirs: Step, ours: Step, request: JobRequest, before: Mapping[str, Any], say: Say
    ) -> dict[str, Any]:
        if not request.is_of_model:
            return await theirs(request, before, say)
        try:
            return await ours(request, before, say)
        except (ServiceError, MigrateCkptError) as error:
            await self._tag_failed(request, str(error))
            raise

    async def _tag_failed(self, request: JobRequest, reason: str) -> None:
        """Tell whoever looks at the version why there is no migrated one; that it cannot be told is only logged."""
        try:
            # The status last, here and elsewhere: whoever waits for it finds the rest there.
            await self._client.tag(_version_of(request), {REASON: reason, STATUS: "failed"})
        except ServiceError as error:
            logger.warning("%s was not tagged as failed: %s", request.source, error)

    async def _find_checkpoints(
        self, request: JobRequest, before: Mapping[str, Any], say: Say
    ) -> dict[str, Any]:
        """Say which of the version's files are checkpoints, and what else it has."""
        version = await self._client.version(*parse_version(request.source or ""))
        uri, folder, files = await self._files_of(version)
        checkpoints = [each.path for each in files if self._is_checkpoint(each.path)]
        if not checkpoints:
            patterns = " ".join(self._patterns)
            message = f"{version} has no checkpoint among its {len(files)} files ({patterns})."
            raise ServiceError("registry_not_found", message)
        return {
            "uri": folder,
            "is_one_file": folder != uri,
            "run_id": version.run_id,
            "files": {each.path: each.size for each in files},
            "checkpoints": checkpoints,
            "is_ours": MIGRATED_FROM in version.tags,
        }

    async def _files_of(self, version: ModelVersion) -> tuple[str, str, list[Artifact]]:
        """Return where a version is, the folder of its files, and these; of a version that is one file, only that."""
        uri = await self._client.artifacts_of(version)
        files = await self._open(uri, "source").list()
        if files:
            return uri, uri, files
        folder, _, name = uri.rpartition("/")
        siblings = await self._open(folder, "source").list()
        return uri, folder, [each for each in siblings if each.path == name]

    async def _migrate_all(
        self, request: JobRequest, before: Mapping[str, Any], say: Say
    ) -> dict[str, Any]:
        """Migrate each checkpoint that needs it; say where the results are kept."""
        made = {}
        if not before["is_ours"]:
            for path in before["checkpoints"]:
                made[path] = await self._migrate(request, before, path, say)
        return {**before, "made": made}

    async def _migrate(
        self, request: JobRequest, found: Mapping[str, Any], path: str, say: Say
    ) -> dict[str, Any]:
        artifacts = self._open(found["uri"], "source")
        total = found["files"][path]
        progress = Progress("fetch", 1, len(self.steps), total_bytes=total)
        fetched: Mapping[str, Any] = {}
        async for attempt in attempts():
            with attempt:
                # One after the other in the same place: what comes next takes the place of what was.
                fetched = await self._migration_work.take_in(
                    request,
                    artifacts.read(path),
                    lambda done: say(replace(progress, done_bytes=done)),
                )
        facts, kept = await self._migration_work.migrate_and_keep(request, fetched, say)
        if kept is not None and await self._is_whole_module(request, found, path):
            raise ServiceError(
                "registry_unloadable",
                f"{path} is a whole module, which mlflow.pytorch.load_model needs. Migrated it is a "
                "mapping of weights, which it could not load: log the state dict instead "
                "(mlflow.pytorch.log_state_dict), or migrate this model by hand.",
            )
        return {
            "digest": fetched["digest"],
            "fingerprint": facts["report"]["fingerprint"],
            "result_digest": None
            if kept is None
            else (await digest_of("sha-256", kept.blocks())).hex(),
            "result_size": None if kept is None else kept.size,
            **facts,
        }

    async def _is_whole_module(
        self, request: JobRequest, found: Mapping[str, Any], path: str
    ) -> bool:
        if MODEL_FILE not in found["files"] or path != WHOLE_MODULE:
            return False
        inspection = await self._migration_work.inspect(request)
        # Only of a mapping there is something to say of its history.
        return inspection["history"] is None and inspection["history_error"] is None

    async def _register(
        self, request: JobRequest, before: Mapping[str, Any], say: Say
    ) -> dict[str, Any]:
        """Make a new version of what has changed, unless this job has done so before it was interrupted."""
        version = _version_of(request)
        changed = {
            path: made for path, made in before["made"].items() if made["result_size"] is not None
        }
        if before["is_ours"] or not changed:
            if not before["is_ours"]:
                await self._client.tag(version, {STATUS: "current"})
            return self._outcome(before, None)
        new = await self._registered(version, request.id)
        if new is None:
            run_id, uri = await self._client.new_run(
                replace(version, run_id=before["run_id"]), request.id
            )
            folder = f"{uri}/{NEW_FOLDER}"
            await self._write_all(request, before, folder, say)
            new = await self._client.new_version(
                version.name,
                f"{folder}/{next(iter(changed))}" if before["is_one_file"] else folder,
                run_id,
                {MIGRATED_FROM: version.version, JOB: request.id, **tags_of(changed)},
                describe_migration(version, changed),
            )
            await self._client.end_run(run_id)
        await self._move_aliases(version, new)
        await self._client.tag(version, {MIGRATED_TO: new.version, STATUS: "migrated"})
        return self._outcome(before, new)

    async def _registered(self, version: ModelVersion, job_id: str) -> ModelVersion | None:
        async for other in self._client.versions(version.name):
            if other.tags.get(JOB) == job_id:
                return other
        return None

    async def _move_aliases(self, old: ModelVersion, new: ModelVersion) -> None:
        for alias in await self._client.aliases(old):
            if any(fnmatch.fnmatchcase(alias, pattern) for pattern in self._aliases):
                await self._client.move_alias(alias, new)

    async def _write_all(
        self, request: JobRequest, before: Mapping[str, Any], uri: str, say: Say
    ) -> None:
        """Write every file of the new version: the migrated ones, and all others as they are."""
        source, target = self._open(before["uri"], "source"), self._open(uri, "destination")
        progress = Progress("store", 3, len(self.steps))
        total = sum(before["files"].values())
        done = 0
        for path, size in before["files"].items():
            made = before["made"].get(path)
            say(replace(progress, migration=None, done_bytes=done, total_bytes=total))
            if made is not None and made["result_size"] is not None:
                await self._write_result(request, before, path, target, say)
            else:
                await target.write(path, partial(source.read, path), size)
            done += size

    async def _write_result(
        self,
        request: JobRequest,
        before: Mapping[str, Any],
        path: str,
        target: Artifacts,
        say: Say,
    ) -> None:
        kept = await self._migration_work.find_kept(before["made"][path]["fingerprint"])
        if kept is None:
            # It has expired, or made room for another: once more, then.
            await self._migrate(request, before, path, say)
            kept = await self._migration_work.find_kept(before["made"][path]["fingerprint"])
            if kept is None:
                message = "The result has just expired."
                raise ServiceError("results_unavailable", message, retryable=True)
        with ExitStack() as stack:
            extent = await kept.open(stack)
            await target.write(path, lambda: blocks_of([extent], lambda _: None), kept.size)

    def _outcome(self, before: Mapping[str, Any], new: ModelVersion | None) -> dict[str, Any]:
        made: Sequence[Mapping[str, Any]] = list(before["made"].values())
        first: Mapping[str, Any] = made[0] if made else {}
        return {
            "fingerprint": first.get("fingerprint", ""),
            "size": first.get("result_size"),
            "header": first.get("header"),
            "report": first.get("report"),
            "model": {
                "new_version": None if new is None else new.version,
                "reports": {path: each["report"] for path, each in before["made"].items()},
            },
        }

    def _is_checkpoint(self, path: str) -> bool:
        name = path.rpartition("/")[2]
        return any(
            fnmatch.fnmatchcase(path if "/" in pattern else name, pattern)
            for pattern in self._patterns
        )

    def _open(self, uri: str, role: str) -> Artifacts:
        return open_artifacts(uri, self._client, self._transfers, role=role)


def _version_of(request: JobRequest) -> ModelVersion:
    return ModelVersion(*parse_version(request.source or ""))

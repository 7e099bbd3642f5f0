"""What is done for a job: its upload is migrated in the sandbox, and the result is put among those that are kept."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from app.admission import Admission
from app.errors import RunFailed, ServiceError
from app.jobs.engine import Say, Step
from app.jobs.folders import JobFolders
from app.jobs.job import JobRequest, Progress
from app.jobs.results import KeptResult, Results
from app.responses import Extent
from app.run_request import NEW_BYTES_NAME, OUTCOME_NAME, RunRequest
from app.runs import read_outcome, with_migrations
from app.sandbox import Sandbox
from app.scratch import open_left_file, remove_tree
from app.sets import MigrationSets
from app.settings import Settings

logger = logging.getLogger(__name__)

# What is no fault of the checkpoint or of a migration may be gone a moment later.
WORTH_ANOTHER_TRY = ("sandbox_lost", "no_space")
PAUSES_SECONDS = (1.0, 5.0)


class _Abandoned(Exception):
    """A copy that is not wanted any more."""


class MigrationWork:
    """The work of a worker that has a sandbox and this machine's disk."""

    def __init__(
        self,
        *,
        settings: Settings,
        sets: MigrationSets,
        sandbox: Sandbox,
        admission: Admission,
        folders: JobFolders,
        results: Results,
        scratch_root: Path,
    ) -> None:
        self._settings = settings
        self._sets = sets
        self._sandbox = sandbox
        self._admission = admission
        self._folders = folders
        self._results = results
        self._scratch_root = scratch_root
        self.steps: Mapping[str, Step] = {"migrate": self._migrate, "store": self._store}

    async def end(self, request: JobRequest) -> None:
        await asyncio.to_thread(self._folders.remove, request.id)

    async def _migrate(
        self, request: JobRequest, before: Mapping[str, Any], say: Say
    ) -> dict[str, Any]:
        """Run the migrations, unless the result is there already; say where the run has left what it made."""
        with self._sets.hold() as held:
            order = with_migrations(
                RunRequest("migrate", ""),
                request.parameters,
                request.digest,
                held,
                self._settings,
            )
            found: dict[str, Any] = {"fingerprint": order.fingerprint, "run": None}
            assert order.fingerprint is not None
            if await asyncio.to_thread(self._results.renew, order.fingerprint) is None:
                run = await self._try_run(request, order, say)
                found["run"] = str(run)
            return found

    async def _try_run(self, request: JobRequest, order: RunRequest, say: Say) -> Path:
        for pause in PAUSES_SECONDS:
            try:
                return await self._run(request, order, say)
            except ServiceError as error:
                if error.error_type not in WORTH_ANOTHER_TRY:
                    raise
                logger.warning("job %s is tried again in %g s: %s", request.id, pause, error)
            await asyncio.sleep(pause)
        return await self._run(request, order, say)

    async def _run(self, request: JobRequest, order: RunRequest, say: Say) -> Path:
        progress = Progress("migrate", 1, len(self.steps), total_bytes=request.size)

        def on_step(position: int, count: int, name: str) -> None:
            say(replace(progress, migration=f"{name} ({position} of {count})"))

        async with self._admission.turn(request.size):
            if self._admission.is_stopping:
                # What would begin now would not end; it begins when the service does.
                await asyncio.Event().wait()
            say(progress)
            run = await asyncio.to_thread(self._folders.begin_run, request.id, self._scratch_root)
            try:
                order = replace(order, scratch_folder=str(run))
                await self._sandbox.run(order, label=f"of job {request.id}", on_step=on_step)
                await asyncio.to_thread(_read_run, run)
            except BaseException:
                remove_tree(run)
                raise
        return run

    async def _store(
        self, request: JobRequest, before: Mapping[str, Any], say: Say
    ) -> dict[str, Any]:
        """Copy what the run has made to where it is kept."""
        fingerprint: str = before["fingerprint"]
        kept = await asyncio.to_thread(self._results.renew, fingerprint)
        if kept is None:
            run = Path(before["run"] or "")
            if before["run"] is None or not run.exists():
                # The scratch ends with its service, and a kept result may expire meanwhile: once more, then.
                before = await self._migrate(request, before, say)
                return await self._store(request, before, say)
            progress = Progress("store", 2, len(self.steps))
            kept = await _in_thread(partial(self._keep, run, fingerprint, progress, say))
            await asyncio.to_thread(remove_tree, run)
        return {"fingerprint": fingerprint, "size": kept.size, **kept.facts}

    def _keep(
        self,
        run: Path,
        fingerprint: str,
        progress: Progress,
        say: Say,
        check: Callable[[], None],
    ) -> KeptResult:
        result = _read_run(run)
        total = sum(count for _, _, count in result["pieces"])

        def on_copied(copied: int) -> None:
            check()
            say(replace(progress, done_bytes=copied, total_bytes=total))

        facts = {"header": result["header"], "report": result["report"]}
        with ExitStack() as stack:
            descriptors = {}
            for which, name in (("source", "upload"), ("new", NEW_BYTES_NAME)):
                descriptors[which] = open_left_file(run / name)
                stack.callback(os.close, descriptors[which])
            extents = [
                Extent(descriptors[which], offset, count)
                for which, offset, count in result["pieces"]
            ]
            return self._results.keep(fingerprint, facts, extents, on_copied=on_copied)


def _read_run(run: Path) -> dict[str, Any]:
    outcome = read_outcome(open_left_file(run / OUTCOME_NAME))
    if "error" in outcome:
        raise RunFailed.from_dict(outcome["error"])
    result: dict[str, Any] = outcome["result"]
    return result


async def _in_thread(work: Callable[[Callable[[], None]], KeptResult]) -> KeptResult:
    """Have a thread do this; when we are cancelled, the check that it is given ends it."""
    is_abandoned = False

    def check() -> None:
        if is_abandoned:
            raise _Abandoned

    working = asyncio.ensure_future(asyncio.to_thread(work, check))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        is_abandoned = True
        await asyncio.gather(working, return_exceptions=True)
        raise

"""What is done for a job: its checkpoint is fetched, migrated in the sandbox, and the result kept or delivered."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from app.admission import Admission
from app.copying import Tell
from app.errors import RunFailed, ServiceError
from app.jobs.callbacks import Callbacks, compose
from app.jobs.delivery import Attempt, Delivery
from app.jobs.engine import Find, Say, Step
from app.jobs.fetching import Fetching
from app.jobs.folders import JobFolders
from app.jobs.job import JobRequest, Progress
from app.jobs.results import KeptResult, Results, expired
from app.jobs.run_files import (
    made_by,
    needed_ranges,
    opened_source,
    read_run_outcome,
)
from app.jobs.uploads import Uploads
from app.run_facts import RunFacts
from app.run_request import RunRequest
from app.runs import with_migrations
from app.sandbox import OnStep, Sandbox
from app.scratch import remove_tree
from app.sets import MigrationSets
from app.settings import Settings
from app.storage.attempts import attempts
from app.storage.blocks import write_blocks
from app.storage.part_copies import AnyExtent
from app.storage.part_fetching import MAX_ROUNDS, Ranges
from app.storage.transfers import Transfers
from app.telemetry import Telemetry
from migrate_ckpt import MigrationSet

logger = logging.getLogger(__name__)

# What is no fault of the checkpoint or of a migration may be gone a moment later.
WORTH_ANOTHER_TRY = ("sandbox_lost", "no_space")
PAUSES_SECONDS = (1.0, 5.0)


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
        uploads: Uploads,
        fetching: Fetching,
        results: Results,
        transfers: Transfers,
        callbacks: Callbacks,
        telemetry: Telemetry,
        scratch_root: Path,
    ) -> None:
        self._settings = settings
        self._sets = sets
        self._sandbox = sandbox
        self._admission = admission
        self._folders = folders
        self._uploads = uploads
        self._fetching = fetching
        self._results = results
        self._transfers = transfers
        self._callbacks = callbacks
        self._telemetry = telemetry
        self._scratch_root = scratch_root
        self.steps: Mapping[str, Step] = {
            "fetch": self._fetching.step,
            "migrate": self._migrate,
            "store": self._store,
        }

    async def end(self, request: JobRequest) -> None:
        try:
            await self._uploads.remove(request.id)
        except ServiceError as error:
            # What has become of the job is decided; a sweep removes them later.
            logger.warning("The files of job %s are still there: %s", request.id, error)

    async def deliver(self, delivery: Delivery, find: Find) -> tuple[Delivery, Attempt] | None:
        composed = await compose(delivery, find)
        if composed is None:
            return None
        attempt = await self._callbacks.attempt(composed)
        self._telemetry.metrics.observe_delivery(attempt)
        logger.info(
            "callback of job %s, attempt %d: %s",
            delivery.job_id,
            delivery.attempt + 1,
            attempt.error or "delivered",
        )
        return composed, attempt

    async def take_in(
        self, request: JobRequest, blocks: AsyncIterator[bytes], tell: Tell
    ) -> dict[str, Any]:
        """Have these bytes be the checkpoint of the job; return what the first step returns of one.

        Raises:
            ServiceError: they are more than may come, or do not come at the moment.
        """
        target = await asyncio.to_thread(self._folders.new_upload, request.id)
        fetched = await write_blocks(
            blocks, target, max_bytes=self._settings.max_upload_bytes, tell=tell
        )
        return {"size": fetched.size, "digest": fetched.digest}

    async def migrate_and_keep(
        self, request: JobRequest, fetched: Mapping[str, Any], say: Say
    ) -> tuple[dict[str, Any], KeptResult | None]:
        """Migrate the checkpoint that is there; return what there is to say of it, and its result if anything ran.

        Raises:
            RunFailed: the run came to something else than a result.
            ServiceError: it could not be done at the moment.
        """
        made = await self._make(request, fetched, say, is_again=False)
        if made["run"] is None:
            kept = await self.find_kept(made["fingerprint"])
            if kept is None:
                raise expired()
            return dict(kept.facts), kept
        run = Path(made["run"])
        try:
            with ExitStack() as stack:
                facts, _ = made_by(run, fetched, stack)
            if not facts["report"]["ran"]:
                return facts, None
            progress = Progress("store", 3, len(self.steps))
            return facts, await self._keep(made, progress, say)
        finally:
            await asyncio.to_thread(remove_tree, run)

    async def inspect(self, request: JobRequest) -> dict[str, Any]:
        """Return what is in the checkpoint that is there.

        Raises:
            RunFailed: it is none.
        """
        run = await asyncio.to_thread(self._folders.begin_run, request.id, self._scratch_root)
        try:
            order = RunRequest("inspect", str(run))
            await self._sandbox.run(order, label=f"of job {request.id}")
            outcome = await asyncio.to_thread(read_run_outcome, run)
        finally:
            await asyncio.to_thread(remove_tree, run)
        if "error" in outcome:
            raise RunFailed.from_dict(outcome["error"])
        found: dict[str, Any] = outcome["result"]
        return found

    async def find_kept(self, fingerprint: str) -> KeptResult | None:
        """Return this result if it is kept; from now on, for as long as a new one.

        Raises:
            ServiceError: what keeps results does not answer, whatever is tried.
        """
        async for attempt in attempts():
            with attempt:
                return await self._results.renew(fingerprint)
        raise AssertionError("unreachable: the last attempt raises")

    async def _migrate(
        self, request: JobRequest, before: Mapping[str, Any], say: Say
    ) -> dict[str, Any]:
        """Run the migrations, unless the result is there already; say where the run has left what it made."""
        fetched = await self._fetching.at_hand(request, before, say)
        return await self._make(request, fetched, say, is_again=False)

    async def _make(
        self, request: JobRequest, fetched: Mapping[str, Any], say: Say, *, is_again: bool
    ) -> dict[str, Any]:
        with self._sets.hold() as held:
            order = with_migrations(
                RunRequest("migrate", ""),
                request.parameters,
                fetched["digest"],
                held,
                self._settings,
            )
            assert order.fingerprint is not None
            found: dict[str, Any] = {
                "fingerprint": order.fingerprint,
                "run": None,
                "is_there": False,
                "fetched": dict(fetched),
            }
            if request.destination is not None:
                found["is_there"] = await self._refuse_existing(
                    request, order.fingerprint, is_again=is_again
                )
            if await self.find_kept(order.fingerprint) is None:
                migration_set = held.find(order.set_name)
                run = partial(self._run, request, fetched, order, migration_set, say)
                found["run"] = str(await self._try_run(request.id, run))
            return found

    async def _refuse_existing(
        self, request: JobRequest, fingerprint: str, *, is_again: bool
    ) -> bool:
        assert request.destination is not None
        destination = self._transfers.destinations.parse(request.destination)
        # No file says whose it is: what is there by now may be what this job had written.
        may_be_ours = is_again and destination.scheme == "file"
        return await self._transfers.refuse_existing(
            destination, fingerprint, may_replace=request.overwrite or may_be_ours
        )

    async def _try_run(self, job_id: str, run: Callable[[], Awaitable[Path]]) -> Path:
        for pause in PAUSES_SECONDS:
            try:
                return await run()
            except ServiceError as error:
                if error.error_type not in WORTH_ANOTHER_TRY:
                    raise
                logger.warning("job %s is tried again in %g s: %s", job_id, pause, error)
            await asyncio.sleep(pause)
        return await run()

    async def _run(
        self,
        request: JobRequest,
        fetched: Mapping[str, Any],
        order: RunRequest,
        migration_set: MigrationSet,
        say: Say,
    ) -> Path:
        size: int = fetched["size"]
        progress = Progress("migrate", 2, len(self.steps), total_bytes=size)

        def on_step(position: int, count: int, name: str) -> None:
            facts.hear_of(name)
            say(replace(progress, migration=f"{name} ({position} of {count})"))

        with self._telemetry.run("migrate", size, migration_set) as facts:
            for left in reversed(range(MAX_ROUNDS)):
                async with self._admission.turn(size):
                    if self._admission.is_stopping:
                        # What would begin now would not end; it begins when the service does.
                        await asyncio.Event().wait()
                    say(progress)
                    facts.begin()
                    run, needs = await self._run_once(request, fetched, order, on_step, facts)
                if not needs:
                    return run
                await asyncio.to_thread(remove_tree, run)
                wanted = needs if left > 1 else [(0, size)]
                await self._fetching.fetch_more(request, fetched, wanted, say)
        raise AssertionError("unreachable: where all of it is there, nothing more is needed")

    async def _run_once(
        self,
        request: JobRequest,
        fetched: Mapping[str, Any],
        order: RunRequest,
        on_step: OnStep,
        facts: RunFacts,
    ) -> tuple[Path, Ranges]:
        """Return the folder of one run, and what more it needs of a checkpoint that was fetched in part."""
        run = await asyncio.to_thread(
            self._folders.begin_run,
            request.id,
            self._scratch_root,
            with_upload="file" not in fetched,
        )
        try:
            order = replace(order, scratch_folder=str(run))
            with opened_source(fetched) as source:
                await self._sandbox.run(
                    order,
                    label=f"of job {request.id}",
                    on_step=on_step,
                    facts=facts,
                    source=source,
                )
            result = facts.take(await asyncio.to_thread(read_run_outcome, run))
            return run, needed_ranges(result, fetched)
        except BaseException:
            remove_tree(run)
            raise

    async def _store(
        self, request: JobRequest, before: Mapping[str, Any], say: Say
    ) -> dict[str, Any]:
        """Copy what the run has made to where it is kept, or to the destination."""
        fingerprint: str = before["fingerprint"]
        kept = await self.find_kept(fingerprint)
        run = Path(before["run"] or "")
        if kept is None and (before["run"] is None or not run.exists()):
            # The scratch ends with its service, and a kept result may expire meanwhile: once more, then.
            fetched = await self._fetching.at_hand(request, before["fetched"], say)
            before = await self._make(request, fetched, say, is_again=True)
            return await self._store(request, before, say)
        progress = Progress("store", 3, len(self.steps))
        if request.destination is not None:
            return await self._deliver(request, before, kept, progress, say)
        if kept is None:
            kept = await self._keep(before, progress, say)
            await asyncio.to_thread(remove_tree, run)
        return {"fingerprint": fingerprint, "size": kept.size, **kept.facts}

    async def _deliver(
        self,
        request: JobRequest,
        before: Mapping[str, Any],
        kept: KeptResult | None,
        progress: Progress,
        say: Say,
    ) -> dict[str, Any]:
        """Write the result to the destination, unless this job has done so before it was interrupted."""
        assert request.destination is not None
        destination = self._transfers.destinations.parse(request.destination)
        with ExitStack() as stack:
            extents: Sequence[AnyExtent]
            if kept is not None:
                facts, extents = dict(kept.facts), [await kept.open(stack)]
            else:
                facts, extents = self._fetching.made(
                    request, before["fetched"], Path(before["run"]), stack
                )
            size = sum(extent.count for extent in extents)

            def tell(written: int) -> None:
                say(replace(progress, done_bytes=written, total_bytes=size))

            if not before["is_there"]:
                await self._transfers.deliver(
                    extents,
                    destination,
                    before["fingerprint"],
                    tell,
                    writer=request.id,
                    may_replace=request.overwrite,
                )
        if before["run"] is not None:
            await asyncio.to_thread(remove_tree, Path(before["run"]))
        return {"fingerprint": before["fingerprint"], "size": size, **facts}

    async def _keep(self, before: Mapping[str, Any], progress: Progress, say: Say) -> KeptResult:
        with ExitStack() as stack:
            facts, extents = made_by(Path(before["run"]), before["fetched"], stack)
            total = sum(extent.count for extent in extents)

            def tell(copied: int) -> None:
                say(replace(progress, done_bytes=copied, total_bytes=total))

            return await self._results.keep(before["fingerprint"], facts, extents, tell)

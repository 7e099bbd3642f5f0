"""Versions that nobody told us of: the registry was asked to, while we were down, and forgot."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

from app.errors import ServiceError
from app.jobs.engine import MAX_TRIES
from app.jobs.job import JobRequest
from app.jobs.model_tags import MIGRATED_FROM, STATUS
from app.jobs.office import JobOffice
from app.registry.mlflow import MlflowClient
from app.registry.versions import ModelVersion, request_for
from app.settings import Settings

logger = logging.getLogger(__name__)

UNSUCCESSFUL = ("failed", "cancelled")


async def unseen(
    client: MlflowClient, settings: Settings, *, with_failed: bool = False
) -> AsyncIterator[tuple[ModelVersion, JobRequest]]:
    """Hand out the versions that are to be migrated and have no tag that says what became of it, with their jobs.

    Raises:
        ServiceError: the registry does not answer.
    """
    async for version in client.versions():
        became = version.tags.get(STATUS)
        is_seen = became is not None and not (with_failed and became == "failed")
        if is_seen or MIGRATED_FROM in version.tags or version.status != "READY":
            continue
        request = request_for(version, url=str(settings.mlflow_url), models=settings.mlflow_models)
        if request is not None:
            yield version, request


async def reconcile(office: JobOffice, client: MlflowClient, settings: Settings) -> int:
    """Store a job for each version that was never seen; return how many there are new.

    Where a job has failed and could not even say so in the registry, that is one more try, of a few.

    Raises:
        ServiceError: the registry does not answer, or too many jobs wait.
    """
    count = 0
    async for version, _ in unseen(client, settings):
        request = await _next_request(office, version, settings)
        if request is not None:
            await office.accept(request)
            logger.info("%s was never told of, and is job %s now", version, request.id)
            count += 1
    return count


async def _next_request(
    office: JobOffice, version: ModelVersion, settings: Settings
) -> JobRequest | None:
    """Return the first try at a version that was not made; None while one is under way, or where all failed."""
    again = ""
    for _ in range(MAX_TRIES):
        request = request_for(
            version, url=str(settings.mlflow_url), models=settings.mlflow_models, again=again
        )
        assert request is not None
        job = await office.engine.status(request.id)
        if job is None:
            return request
        if job.status not in UNSUCCESSFUL:
            return None
        again = job.id
    return None


async def keep_reconciling(office: JobOffice, client: MlflowClient, settings: Settings) -> None:
    assert settings.mlflow_reconcile_seconds is not None
    while True:
        try:
            await reconcile(office, client, settings)
        except ServiceError as error:
            logger.warning("The registry's versions were not looked through: %s", error)
        except Exception:
            logger.exception("The registry's versions could not be looked through")
        await asyncio.sleep(settings.mlflow_reconcile_seconds)

"""The parts that the jobs of one process consist of, put together as its settings say.

MIGRATE_CKPT_DATA_FOLDER                              one process; SQLite, and results in this folder
MIGRATE_CKPT_DATABASE_URL, MIGRATE_CKPT_RESULTS_URL   many; PostgreSQL, and results in this bucket
neither                                               no jobs
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from app.admission import Admission
from app.errors import ServiceError
from app.jobs.engine import Work
from app.jobs.folders import JobFolders, sole_user
from app.jobs.office import JobOffice
from app.jobs.results import Results
from app.sandbox import Sandbox
from app.sets import MigrationSets
from app.settings import PREFIX, Settings, SettingsError

if TYPE_CHECKING:
    from app.jobs.uploads import Uploads
    from app.registry.mlflow import MlflowClient
    from app.telemetry import Telemetry

logger = logging.getLogger(__name__)

Role = Literal["serve", "worker"]
"""What a process is there for: requests, or jobs. Where only one can be, it is there for both."""

NO_JOBS = "any number: no jobs are kept"
ONE_REPLICA = "one replica: jobs are kept in SQLite, and results in a folder of this machine"
MANY_REPLICAS = "any number: jobs are kept in PostgreSQL, and results in {bucket}"


@dataclass(frozen=True, slots=True)
class _Places:
    """Where things are kept."""

    database_url: str
    folders: JobFolders
    uploads: Uploads
    results: Results


@dataclass(frozen=True, slots=True)
class Parts:
    """What a worker needs beside places."""

    sets: MigrationSets
    sandbox: Sandbox
    admission: Admission
    telemetry: Telemetry
    scratch_root: Path


def check_settings(settings: Settings, role: Role) -> None:
    """Refuse settings that ask for jobs that could not be kept.

    Raises:
        SettingsError: it says what to set, or to install.
    """
    has_database = settings.database_url is not None
    if has_database != (settings.results_url is not None):
        given, missing = (
            ("DATABASE_URL", "RESULTS_URL") if has_database else ("RESULTS_URL", "DATABASE_URL")
        )
        raise SettingsError(
            f"{PREFIX}{given} needs {PREFIX}{missing} beside it: the processes that share one database "
            "need a bucket that all of them reach, such as s3://bucket/migrate-ckpt, and the other way round."
        )
    if role == "worker" and not has_database:
        raise SettingsError(
            f"A worker takes its jobs from a database that it shares: set {PREFIX}DATABASE_URL and "
            f"{PREFIX}RESULTS_URL. Without them, the jobs of {PREFIX}DATA_FOLDER are carried out by "
            "python -m app serve itself."
        )
    if settings.mlflow_secrets and settings.mlflow_url is None:
        raise SettingsError(
            f"{PREFIX}MLFLOW_SECRET needs {PREFIX}MLFLOW_URL beside it: the server that signs with it."
        )
    hooks = [
        name
        for name in ("mlflow_url", "hook_secret", "hook_secret_file")
        if getattr(settings, name) is not None
    ]
    if hooks and not (settings.data_folder or has_database):
        raise SettingsError(
            f"{PREFIX}{hooks[0].upper()} needs jobs, which deliveries become: set {PREFIX}DATA_FOLDER."
        )
    if (settings.data_folder or has_database) and importlib.util.find_spec("dbos") is None:
        given = (
            f"{PREFIX}DATABASE_URL"
            if has_database
            else f"{PREFIX}DATA_FOLDER={settings.data_folder}"
        )
        raise SettingsError(
            f"{given} cannot be used: jobs need the extra [jobs]. "
            "Install it with pip install '.[jobs]' in the clone, or leave the variable out."
        )


def describe_replicas(settings: Settings) -> str:
    """Say how many processes there may be of a service with these settings."""
    if settings.database_url is not None:
        return MANY_REPLICAS.format(bucket=settings.results_url)
    return NO_JOBS if settings.data_folder is None else ONE_REPLICA


@contextlib.asynccontextmanager
async def open_office(
    settings: Settings, role: Role, parts: Parts
) -> AsyncIterator[JobOffice | None]:
    """Answer for jobs as long as the block lasts, and carry them out where that is for this process to do.

    None where the settings name no place for jobs.

    Raises:
        SettingsError: another service has the folder, or the folder, database or bucket cannot be used.
    """
    if settings.database_url is None and settings.data_folder is None:
        yield None
        return
    # Loaded only here: it takes two seconds, and not every service has it.
    from app.jobs.callbacks import Callbacks
    from app.jobs.dbos_engine import DbosEngine
    from app.storage.transfers import Transfers

    takes_jobs = role == "worker" or settings.database_url is None
    async with contextlib.AsyncExitStack() as stack:
        places = await stack.enter_async_context(_places(settings, parts.scratch_root))
        engine = DbosEngine(places.database_url, concurrency=settings.max_concurrent_runs)
        office = JobOffice(
            engine,
            places.folders,
            places.uploads,
            places.results,
            Transfers.from_settings(settings),
            Callbacks.from_settings(settings),
            max_queued=settings.max_queued_jobs,
            is_stopping=lambda: parts.admission.is_stopping,
            retry_after=parts.admission.retry_after,
        )
        client = await stack.enter_async_context(_registry(settings))
        work = _work(settings, parts, office, client) if takes_jobs else None
        await stack.enter_async_context(engine.run(work))
        logger.info("Jobs: %s", describe_replicas(settings))
        if takes_jobs:
            await stack.enter_async_context(_going_on(office.keep_sweeping()))
        if role == "serve" and client is not None and settings.mlflow_reconcile_seconds:
            from app.registry.reconciling import keep_reconciling

            await stack.enter_async_context(_going_on(keep_reconciling(office, client, settings)))
        yield office


def _work(settings: Settings, parts: Parts, office: JobOffice, client: MlflowClient | None) -> Work:
    from app.jobs.fetching import Fetching
    from app.jobs.model_work import ModelWork
    from app.jobs.work import MigrationWork

    fetching = Fetching(
        office.folders,
        office.uploads,
        office.transfers,
        parts.scratch_root,
        fetches_whole=settings.fetch_whole,
    )
    work = MigrationWork(
        settings=settings,
        sets=parts.sets,
        sandbox=parts.sandbox,
        admission=parts.admission,
        folders=office.folders,
        uploads=office.uploads,
        fetching=fetching,
        results=office.results,
        transfers=office.transfers,
        callbacks=office.callbacks,
        telemetry=parts.telemetry,
        scratch_root=parts.scratch_root,
    )
    if client is None:
        return work
    return ModelWork(work, client, settings=settings, transfers=office.transfers)


@contextlib.asynccontextmanager
async def _registry(settings: Settings) -> AsyncIterator[MlflowClient | None]:
    if settings.mlflow_url is None:
        yield None
        return
    from app.registry.mlflow import MlflowClient

    client = MlflowClient(str(settings.mlflow_url))
    try:
        yield client
    finally:
        await client.close()


@contextlib.asynccontextmanager
async def _going_on(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Have this go on as long as the block lasts."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def _places(settings: Settings, scratch_root: Path) -> AsyncIterator[_Places]:
    if settings.database_url is not None:
        yield await _shared_places(settings, scratch_root)
        return
    assert settings.data_folder is not None
    with sole_user(settings.data_folder):
        yield _places_here(settings, settings.data_folder)


def _places_here(settings: Settings, data_folder: Path) -> _Places:
    from app.jobs.local_results import LocalResults
    from app.jobs.uploads import LocalUploads

    folders = JobFolders(data_folder)
    results = LocalResults(
        data_folder / "results",
        ttl_seconds=settings.result_ttl_seconds,
        max_bytes=settings.max_result_bytes,
    )
    url = f"sqlite:///{data_folder / 'jobs.sqlite'}"
    return _Places(url, folders, LocalUploads(folders), results)


async def _shared_places(settings: Settings, scratch_root: Path) -> _Places:
    from app.jobs.bucket_results import BucketResults
    from app.jobs.uploads import BucketUploads
    from app.storage.buckets import store_at
    from app.storage.shared_bucket import SharedBucket

    assert settings.database_url is not None
    assert settings.results_url is not None
    await asyncio.to_thread(_check_database, settings)
    bucket = SharedBucket(store_at(settings.results_url), settings.results_url)
    try:
        await bucket.check()
    except ServiceError as error:
        message = f"{PREFIX}RESULTS_URL={settings.results_url} cannot be used: {error.__cause__}"
        raise SettingsError(message) from error
    # What is on its way only: a process that is gone has its files gone with it, and others do without.
    folder = scratch_root / "jobs"
    folder.mkdir(mode=0o700)
    folders = JobFolders(folder)
    results = BucketResults(
        bucket,
        ttl_seconds=settings.result_ttl_seconds,
        max_bytes=settings.max_result_bytes,
        scratch_root=folder,
    )
    uploads = BucketUploads(bucket, folders, max_bytes=settings.max_upload_bytes)
    return _Places(settings.database_url.get_secret_value(), folders, uploads, results)


def _check_database(settings: Settings) -> None:
    """Find out now that it cannot be reached: DBOS would try for good.

    Raises:
        SettingsError: it says why, without the URL, which may hold a password.
    """
    import psycopg

    assert settings.database_url is not None
    url = settings.database_url.get_secret_value()
    try:
        psycopg.connect(url, connect_timeout=10).close()
    except psycopg.Error as error:
        message = str(error).partition("\n")[0]
        # Of a URL that it cannot read, the library repeats all.
        if "postgresql:" in message:
            message = "it cannot be read; one looks like postgresql://user@host:5432/name"
        raise SettingsError(f"{PREFIX}DATABASE_URL cannot be used: {message}.") from None

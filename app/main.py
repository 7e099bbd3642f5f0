"""The application: its parts, wired together. `app.main:app` is made when it is asked for, not at import."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

import migrate_ckpt
from app import errors
from app.access import Access, AccessMiddleware
from app.admission import Admission
from app.early_answers import EarlyAnswerMiddleware
from app.instance import instance_folder
from app.jobs.opening import Parts, Role, check_settings, open_office
from app.live_metrics import live_metrics
from app.metrics import Metrics
from app.openapi import complete_description
from app.request_ids import RequestIdMiddleware
from app.routes import (
    docs,
    health,
    hooks,
    inspect,
    jobs,
    metrics,
    migrate,
    migrations,
    page,
    plan,
)
from app.sandbox import Sandbox
from app.scratch_room import free_bytes
from app.security_headers import SecurityHeadersMiddleware
from app.sets import MigrationSets
from app.settings import Settings, read_settings
from app.span_export import exporting, find_exporters
from app.telemetry import Telemetry, TelemetryMiddleware
from app.turns import Limits
from app.watching import watching

logger = logging.getLogger(__name__)


def create_app(settings: Settings, role: Role = "serve") -> FastAPI:
    """Return the service for these settings. Nothing is started before its lifespan begins.

    A worker answers probes and metrics only.

    Raises:
        SettingsError: the access tokens cannot be used, or jobs or spans are asked for and cannot be had.
    """
    app = FastAPI(
        title="migrate-ckpt",
        summary="Brings old PyTorch checkpoints up to date.",
        version=migrate_ckpt.__version__,
        lifespan=_lifespan,
        # The framework's own page has its scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    check_settings(settings, role)
    app.state.settings = settings
    app.state.role = role
    app.state.access = Access.from_settings(settings)
    app.state.admission = Admission(
        Limits(settings.max_concurrent_runs, settings.memory_budget_bytes),
        max_queued=settings.max_queued_runs,
        run_memory_bytes=settings.run_memory_bytes,
        free_bytes=partial(free_bytes, settings.scratch_folder),
    )
    app.state.telemetry = Telemetry(Metrics(live_metrics(app.state)))
    app.state.span_exporters = find_exporters()
    # The last one added is the first to see a request.
    app.add_middleware(AccessMiddleware, access=app.state.access)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["*"],
        )
    app.add_middleware(SecurityHeadersMiddleware)
    app.add_middleware(TelemetryMiddleware, telemetry=app.state.telemetry)
    app.add_middleware(EarlyAnswerMiddleware)
    app.add_middleware(RequestIdMiddleware)
    errors.install(app)
    of_a_service = (
        (page, migrate, plan, inspect, jobs, hooks, migrations, docs) if role == "serve" else ()
    )
    for resource in (*of_a_service, health, metrics):
        app.include_router(resource.router)
    complete_description(app, with_access=not app.state.access.is_open)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    with instance_folder(settings.scratch_folder) as scratch_root:
        # A folder that cannot be used is found out now, and not by the first client.
        sets = await asyncio.to_thread(MigrationSets, settings.migrations_folder, scratch_root)
        logger.info("%s in %s", sets.current, settings.migrations_folder)
        sandbox = Sandbox.from_settings(settings, scratch_root)
        app.state.scratch_root = scratch_root
        app.state.sets = sets
        app.state.sandbox = sandbox
        parts = Parts(sets, sandbox, app.state.admission, app.state.telemetry, scratch_root)
        try:
            await sandbox.start()
            async with (
                exporting(app.state.span_exporters) as app.state.telemetry.tracer,
                watching(app.state.access.reload, sets.reload),
                open_office(settings, app.state.role, parts) as app.state.jobs,
            ):
                yield
        finally:
            await sandbox.stop()


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()["app"] = app = create_app(read_settings())
    return app

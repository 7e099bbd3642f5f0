"""Looks every second whether the files that a service goes by have changed, and has them read again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

logger = logging.getLogger(__name__)

# Polled, for what is mounted from elsewhere tells nobody of its changes.
POLL_SECONDS = 1.0


@contextlib.asynccontextmanager
async def watching(*reloads: Callable[[], None]) -> AsyncIterator[None]:
    """Call these in turn, in a thread, again and again until the block is left."""
    task = asyncio.create_task(_watch(reloads))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _watch(reloads: tuple[Callable[[], None], ...]) -> None:
    while True:
        await asyncio.sleep(POLL_SECONDS)
        for reload in reloads:
            try:
                await asyncio.to_thread(reload)
            except Exception:
                # One that fails is no reason to look no more.
                logger.exception("A changed file could not be looked at")

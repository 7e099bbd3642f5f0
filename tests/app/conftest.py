"""The service in this process: requests go to the application, and no socket is opened."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI


class Client:
    """Sends requests to an application that it has started, all in one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, app: FastAPI) -> None:
        self.loop = loop
        self.app = app

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self.loop.run_until_complete(self._request(method, path, **options))

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.request("POST", path, **options)

    async def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        # An unforeseen error is answered first and raised then, for the server to log.
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            return await client.request(method, path, **options)


@contextmanager
def started(app: FastAPI) -> Iterator[Client]:
    loop = asyncio.new_event_loop()
    lifespan: AbstractAsyncContextManager[Any] = app.router.lifespan_context(app)
    try:
        loop.run_until_complete(lifespan.__aenter__())
        try:
            yield Client(loop, app)
        finally:
            loop.run_until_complete(lifespan.__aexit__(None, None, None))
    finally:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[[FastAPI], Client]]:
    """Start an application; it is stopped after the last test of the module."""
    with ExitStack() as stack:
        yield lambda app: stack.enter_context(started(app))

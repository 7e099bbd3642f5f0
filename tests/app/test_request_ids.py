from __future__ import annotations

from collections.abc import Callable

import pytest
from fastapi import FastAPI, Request

from app.request_ids import RequestIdMiddleware
from tests.app.conftest import Client


@pytest.fixture(scope="module")
def client(start: Callable[[FastAPI], Client]) -> Client:
    app = FastAPI()
    app.add_middleware(RequestIdMiddleware)

    @app.get("/")
    async def show(request: Request) -> str:
        request_id: str = request.state.request_id
        return request_id

    return start(app)


def test_sane_id_of_the_client_is_kept(client: Client) -> None:
    answer = client.get("/", headers={"X-Request-Id": "run-7/2026:a.b"})

    assert answer.headers["x-request-id"] == answer.json() == "run-7/2026:a.b"


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, 'a"b', "a\tb"])
def test_other_ids_are_replaced(client: Client, given: str) -> None:
    answer = client.get("/", headers={"X-Request-Id": given})

    assert answer.headers["x-request-id"] == answer.json()
    assert answer.json() not in ("", given)


def test_each_request_gets_an_id_of_its_own(client: Client) -> None:
    assert client.get("/").json() != client.get("/").json()

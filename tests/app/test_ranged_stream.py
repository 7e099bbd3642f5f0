"""What lies in a bucket is answered in ranges as a file is (RFC 9110, 14)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import httpx
import pytest
from fastapi import FastAPI, Request, Response

from app.errors import ServiceError, install
from app.ranged_stream import RangedStream, read_range
from app.request_ids import RequestIdMiddleware
from tests.app.conftest import Client

CONTENT = bytes(range(100))


async def read(offset: int, count: int) -> AsyncIterator[bytes]:
    for start in range(offset, offset + count, 7):
        yield CONTENT[start : min(start + 7, offset + count)]


async def lost(offset: int, count: int) -> AsyncIterator[bytes]:
    raise ServiceError("result_expired", "The result has just expired.")
    yield b""


@pytest.fixture(scope="module")
def client(start: Callable[[FastAPI], Client]) -> Client:
    app = FastAPI()
    install(app)
    app.add_middleware(RequestIdMiddleware)

    @app.api_route("/{name}", methods=["GET", "HEAD"])
    async def answer(request: Request, name: str) -> Response:
        reader = lost if name == "lost" else read
        return RangedStream(
            reader, len(CONTENT), headers={"ETag": '"a"'}, media_type="application/octet-stream"
        )

    return start(app)


def get(client: Client, text: str, **headers: str) -> httpx.Response:
    return client.get("/it", headers={"Range": text, **headers})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=10-19", (10, 10)),
        ("bytes=90-", (90, 10)),
        ("bytes=-5", (95, 5)),
        ("bytes=-500", (0, 100)),
        ("bytes=95-500", (95, 5)),
        ("BYTES= 3-4 ", (3, 2)),
        # A unit that is not known, and several ranges at once, are answered with everything.
        ("lines=1-2", None),
        ("bytes=0-1,5-6", None),
    ],
)
def test_range_is_read(text: str, expected: tuple[int, int] | None) -> None:
    assert read_range(text, 100) == expected


@pytest.mark.parametrize(
    "text", ["bytes=", "bytes=a-b", "bytes=5-3", "bytes=-", "bytes=1-2;", "bytes"]
)
def test_what_is_no_range_is_refused(client: Client, text: str) -> None:
    answer = get(client, text)

    assert (answer.status_code, answer.json()["error_type"]) == (400, "malformed_range")


@pytest.mark.parametrize("text", ["bytes=100-", "bytes=500-600", "bytes=-0"])
def test_range_beyond_the_end_is_refused_with_the_size(client: Client, text: str) -> None:
    answer = get(client, text)

    assert (answer.status_code, answer.json()["error_type"]) == (416, "range_not_satisfiable")
    assert "it has 100" in answer.json()["detail"]


def test_whole_and_part_have_their_headers(client: Client) -> None:
    whole, part = client.get("/it"), get(client, "bytes=10-30")
    head = client.request("HEAD", "/it", headers={"Range": "bytes=10-30"})

    assert (whole.status_code, whole.content) == (200, CONTENT)
    assert (whole.headers["accept-ranges"], whole.headers["content-length"]) == ("bytes", "100")
    assert (part.status_code, part.content) == (206, CONTENT[10:31])
    assert part.headers["content-range"] == "bytes 10-30/100"
    assert part.headers["content-length"] == "21"
    assert head.content == b""
    assert head.headers["content-length"] == "100"


def test_range_of_something_else_is_answered_with_everything(client: Client) -> None:
    assert get(client, "bytes=0-1", **{"If-Range": '"a"'}).status_code == 206
    assert get(client, "bytes=0-1", **{"If-Range": '"b"'}).content == CONTENT


def test_what_is_gone_is_a_problem_and_no_half_answer(client: Client) -> None:
    answer = client.get("/lost")

    assert (answer.status_code, answer.json()["error_type"]) == (410, "result_expired")

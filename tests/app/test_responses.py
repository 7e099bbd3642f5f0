from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from app import responses
from app.errors import ServiceError
from app.responses import FILE_TYPE, ZIP_TYPE, Extent, negotiate, read_blocks

CONTENT = bytes(range(256)) * 64


@pytest.fixture(scope="module")
def descriptor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    path = tmp_path_factory.mktemp("responses") / "file"
    path.write_bytes(CONTENT)
    descriptor = os.open(path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


@given(
    st.lists(st.tuples(st.integers(0, 8000), st.integers(0, 8000)), max_size=30),
    st.integers(1, 5000),
)
def test_blocks_joined_are_the_extents_joined(
    descriptor: int, places: list[tuple[int, int]], block_bytes: int
) -> None:
    extents = [Extent(descriptor, offset, count) for offset, count in places]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(responses, "BLOCK_BYTES", block_bytes)

        blocks = list(read_blocks(extents))

    assert b"".join(blocks) == b"".join(CONTENT[o : o + c] for o, c in places)
    assert all(len(block) == block_bytes for block in blocks[:-1])


def test_file_that_is_shorter_than_its_extents_is_an_error(descriptor: int) -> None:
    with pytest.raises(EOFError):
        list(read_blocks([Extent(descriptor, len(CONTENT) - 1, 2)]))


def request_accepting(accept: str | None) -> Request:
    headers = [] if accept is None else [(b"accept", accept.encode())]
    return Request({"type": "http", "headers": headers})


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, FILE_TYPE),
        ("", FILE_TYPE),
        ("*/*", FILE_TYPE),
        ("application/*", FILE_TYPE),
        ("application/octet-stream", FILE_TYPE),
        ("text/html, */*;q=0.8", FILE_TYPE),
        ("application/zip", ZIP_TYPE),
        ("Application/ZIP", ZIP_TYPE),
        ("application/zip, */*", ZIP_TYPE),
        ("application/zip;q=0.9, */*;q=0.1", ZIP_TYPE),
        ("application/zip;q=0.5, application/octet-stream", FILE_TYPE),
        ("application/zip;q=0, */*", FILE_TYPE),
    ],
)
def test_answer_is_the_file_unless_a_zip_is_liked_no_less(
    accept: str | None, expected: str
) -> None:
    assert negotiate(request_accepting(accept)) == expected


@pytest.mark.parametrize("accept", ["application/json", "text/html", "*/*;q=0"])
def test_client_that_takes_neither_is_told(accept: str) -> None:
    with pytest.raises(ServiceError) as caught:
        negotiate(request_accepting(accept))

    assert caught.value.error_type == "not_acceptable"

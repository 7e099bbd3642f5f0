from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect, Request

from app import uploads
from app.errors import ServiceError
from app.forms import MAX_FIELD_BYTES, MAX_FIELDS
from app.scratch import Scratch
from app.uploads import Upload, declared_bytes, receive

FORM = "multipart/form-data; boundary=XX"
NAMES = ("set", "to")


def part(name: str, content: bytes, *, filename: str | None = None) -> bytes:
    suffix = "" if filename is None else f'; filename="{filename}"'
    head = f'--XX\r\nContent-Disposition: form-data; name="{name}"{suffix}\r\n\r\n'
    return head.encode() + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--XX--\r\n"


def request_with(
    chunks: Sequence[bytes], *, content_type: str = "", is_cut: bool = False, **headers: str
) -> Request:
    """A request whose body arrives in these chunks, or is cut off after them."""
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks
    ]
    end = {"type": "http.disconnect"} if is_cut else {"type": "http.request", "body": b""}
    left = iter([*messages, end])
    named = {"content-type": content_type, **headers}
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in named.items()]

    async def arrive() -> dict[str, Any]:
        return next(left)

    return Request({"type": "http", "headers": raw}, arrive)


def receive_into(root: Path, request: Request, *, max_bytes: int = 10**6) -> tuple[Upload, bytes]:
    """Receive, and return with the upload the bytes that its descriptor reads."""
    scratch = Scratch(root)
    try:
        declared_bytes(request, max_bytes=max_bytes)
        coroutine = receive(
            request, scratch, max_bytes=max_bytes, field_names=NAMES, on_received=lambda _: None
        )
        upload = asyncio.run(coroutine)
        return upload, os.pread(upload.descriptor, upload.size + 1, 0)
    finally:
        scratch.remove()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


def cut(body: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(body), *(place % (len(body) + 1) for place in places)})
    return [body[a:b] for a, b in pairwise(edges)]


@given(
    content=st.binary(min_size=1, max_size=300) | st.sampled_from([b"\r\n--X", b"\r\n--XX", b"-"]),
    places=st.lists(st.integers(0, 10_000), max_size=40),
    batch_chunks=st.integers(1, 5),
)
def test_form_gives_the_same_file_wherever_the_body_is_cut(
    root: Path, content: bytes, places: list[int], batch_chunks: int
) -> None:
    content = content.replace(b"\r\n--XX", b"\r\n--X-")
    body = form(part("set", b"vision"), part("file", content, filename="a.pt"), part("to", b"x"))
    request = request_with(cut(body, places), content_type=FORM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uploads, "BATCH_CHUNKS", batch_chunks)

        upload, written = receive_into(root, request)

    assert written == content
    assert upload.size == len(content)
    assert upload.digest == hashlib.sha256(content).hexdigest()
    assert upload.filename == "a.pt"
    assert upload.fields == (("set", "vision"), ("to", "x"))


@pytest.mark.parametrize(
    "content_type", ["", "application/octet-stream", "application/x-www-form-urlencoded"]
)
def test_body_that_is_no_form_is_the_file(root: Path, content_type: str) -> None:
    request = request_with([b"abc", b"", b"def"], content_type=content_type)

    upload, written = receive_into(root, request)

    assert written == b"abcdef"
    assert (upload.filename, upload.fields) == (None, ())


@pytest.mark.parametrize(
    ("body", "error_type", "words"),
    [
        pytest.param(form(part("set", b"x")), "no_file", "file=@", id="no file"),
        pytest.param(form(), "no_file", "file=@", id="no part"),
        pytest.param(
            form(part("file", b"a"), part("file", b"b")), "several_files", "two", id="two files"
        ),
        pytest.param(form(part("file", b"")), "empty_file", "empty", id="empty file"),
        pytest.param(
            form(part("polcy", b"x"), part("file", b"a")),
            "unknown_parameter",
            '"polcy"',
            id="field",
        ),
        pytest.param(
            form(part("set", b"x" * (MAX_FIELD_BYTES + 1))), "invalid_parameter", '"set"', id="long"
        ),
        pytest.param(
            form(*[part("set", b"x")] * (MAX_FIELDS + 1)), "malformed_upload", "fields", id="many"
        ),
        pytest.param(part("file", b"abc"), "malformed_upload", "last boundary", id="cut off"),
        pytest.param(b"no form at all", "malformed_upload", "broken", id="no form"),
    ],
)
def test_form_that_cannot_be_used_is_refused_by_name(
    root: Path, body: bytes, error_type: str, words: str
) -> None:
    with pytest.raises(ServiceError, match=words) as caught:
        receive_into(root, request_with([body], content_type=FORM))

    assert caught.value.error_type == error_type


def test_form_without_a_boundary_is_refused(root: Path) -> None:
    with pytest.raises(ServiceError, match="boundary"):
        receive_into(root, request_with([b"x"], content_type="multipart/form-data"))


def test_empty_body_is_an_empty_file(root: Path) -> None:
    with pytest.raises(ServiceError) as caught:
        receive_into(root, request_with([]))

    assert caught.value.error_type == "empty_file"


def test_file_of_just_the_limit_is_taken(root: Path) -> None:
    body = form(part("file", b"x" * 100))

    upload, _ = receive_into(root, request_with([body], content_type=FORM), max_bytes=100)

    assert upload.size == 100


@pytest.mark.parametrize("content_type", ["", FORM], ids=["raw", "form"])
def test_body_is_cut_at_the_limit_while_it_streams(root: Path, content_type: str) -> None:
    start = part("file", b"")[:-2] if content_type else b""
    chunks = [start, *[b"x" * 60] * 2]

    with pytest.raises(ServiceError) as caught:
        receive_into(root, request_with(chunks, content_type=content_type), max_bytes=100)

    assert caught.value.error_type == "too_large"
    assert caught.value.data["max_upload_bytes"] == 100


def test_what_follows_a_form_counts_too(root: Path) -> None:
    chunks = [form(part("file", b"a")), *[b"x" * 2**14] * 5]

    with pytest.raises(ServiceError) as caught:
        receive_into(root, request_with(chunks, content_type=FORM), max_bytes=100)

    assert caught.value.error_type == "too_large"


def test_declared_size_is_judged_before_a_byte_is_read(root: Path) -> None:
    request = request_with([], is_cut=True, content_length="101")

    with pytest.raises(ServiceError) as caught:
        receive_into(root, request, max_bytes=100)

    assert caught.value.error_type == "too_large"


def test_encoded_body_is_refused_before_a_byte_is_read(root: Path) -> None:
    request = request_with([], is_cut=True, content_encoding="gzip")

    with pytest.raises(ServiceError) as caught:
        receive_into(root, request)

    assert caught.value.error_type == "unsupported_encoding"


def test_client_that_goes_is_noticed_and_its_scratch_removed(tmp_path: Path) -> None:
    with pytest.raises(ClientDisconnect):
        receive_into(tmp_path, request_with([b"abc"], is_cut=True))

    assert eventually_empty(tmp_path)


def eventually_empty(folder: Path) -> bool:
    async def wait() -> bool:
        for _ in range(100):
            if not list(folder.iterdir()):
                return True
            await asyncio.sleep(0.02)
        return False

    return asyncio.run(wait())


def test_full_disk_is_said_to_be_full(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(descriptor: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", write)

    with pytest.raises(ServiceError) as caught:
        receive_into(root, request_with([b"abc"]))

    assert (caught.value.error_type, caught.value.retryable) == ("no_space", True)

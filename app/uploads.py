"""A checkpoint on its way in: streamed from the body, multipart or raw, to one scratch file, never held in memory."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Collection
from concurrent.futures import Future
from dataclasses import dataclass

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.digests import ExpectedDigests
from app.errors import ServiceError
from app.forms import FormReader
from app.run_request import UPLOAD_NAME
from app.scratch import Scratch

# Large enough that the disk is worth its thread, small enough that two of them are nothing.
BATCH_BYTES = 4 * 2**20
# A client may send a byte at a time, and each chunk costs some hundred bytes beside what it holds.
BATCH_CHUNKS = 4096
# What a multipart body may hold beside the file: boundaries, headers, a few short fields.
OVERHEAD_BYTES = 64 * 2**10

FORM_TYPE = b"multipart/form-data"

_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class Upload:
    """One received checkpoint; the descriptor is open for reading as long as the scratch is there."""

    descriptor: int
    size: int
    digest: str
    filename: str | None
    fields: tuple[tuple[str, str], ...]


def declared_bytes(request: Request, *, max_bytes: int) -> int | None:
    """Return how long the body says it is, or None where it does not say.

    Raises:
        ServiceError: the headers rule it out already: too large, or encoded.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        message = f"The body is encoded as {encoding}; send it as it is."
        raise ServiceError("unsupported_encoding", message)
    length = request.headers.get("content-length", "")
    if not length.isdecimal():
        return None
    kind, _ = _content_type(request)
    if int(length) > max_bytes + (OVERHEAD_BYTES if kind == FORM_TYPE else 0):
        raise too_large(max_bytes)
    return int(length)


async def receive(
    request: Request,
    scratch: Scratch,
    *,
    max_bytes: int,
    field_names: Collection[str],
    on_received: Callable[[int], None],
) -> Upload:
    """Read the body to its end.

    Args:
        request: whose body it is.
        scratch: where the file goes.
        max_bytes: what the file may have.
        field_names: what a form may hold beside the file.
        on_received: is told how many bytes have come in so far; what it raises ends the upload.

    Raises:
        ServiceError: too large, no file or more than one, an unknown form field, not well formed, or
            not what a digest of it says.
        ClientDisconnect: the client went before it had sent everything.
    """
    kind, options = _content_type(request)
    expected = ExpectedDigests(request.headers)
    chunks = _chunks(request, on_received)
    if expected:
        chunks = _digested(chunks, expected, scratch)
    writer = FileWriter(scratch, scratch.create(UPLOAD_NAME), max_bytes=max_bytes)
    form = FormReader(writer.add, field_names)
    if kind == FORM_TYPE:
        await _read_form(chunks, writer, form, options.get(b"boundary", b""))
    else:
        async for chunk in chunks:
            writer.add(memoryview(chunk))
            await writer.write_full_batch()
    digest = await writer.finish()
    expected.check()
    if not writer.size:
        raise ServiceError("empty_file", "The file is empty: send the checkpoint's bytes.")
    fields = tuple(form.fields)
    return Upload(writer.descriptor, writer.size, digest, form.filename, fields)


def _content_type(request: Request) -> tuple[bytes, dict[bytes, bytes]]:
    return parse_options_header(request.headers.get("content-type"))


async def _chunks(request: Request, on_received: Callable[[int], None]) -> AsyncIterator[bytes]:
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        on_received(received)
        yield chunk


async def _digested(
    chunks: AsyncIterator[bytes], expected: ExpectedDigests, scratch: Scratch
) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        # In the thread that writes, before what it writes of this chunk.
        scratch.begin(expected.update, chunk)
        yield chunk


async def _read_form(
    chunks: AsyncIterator[bytes], writer: FileWriter, form: FormReader, boundary: bytes
) -> None:
    if not boundary:
        raise ServiceError(
            "malformed_upload", "The Content-Type of the multipart body has no boundary."
        )
    left = writer.max_bytes + OVERHEAD_BYTES
    try:
        parser = MultipartParser(boundary, form.callbacks())
        async for chunk in chunks:
            left -= len(chunk)
            if left < 0:
                raise too_large(writer.max_bytes)
            parser.write(chunk)
            await writer.write_full_batch()
    except FormParserError as error:
        raise ServiceError("malformed_upload", f"The multipart body is broken: {error}.") from error
    form.check_complete()


class FileWriter:
    """Takes chunks and has the scratch's thread write and digest them, a batch while the next is received."""

    def __init__(self, scratch: Scratch, descriptor: int, *, max_bytes: int) -> None:
        self.descriptor = descriptor
        self.max_bytes = max_bytes
        self.size = 0
        self._scratch = scratch
        self._digest = hashlib.sha256()
        self._batch: list[memoryview] = []
        self._batch_bytes = 0
        self._under_way: Future[None] | None = None

    def add(self, chunk: memoryview) -> None:
        """Take a chunk, which must not change any more."""
        self.size += len(chunk)
        if self.size > self.max_bytes:
            raise too_large(self.max_bytes)
        self._batch.append(chunk)
        self._batch_bytes += len(chunk)

    async def write_full_batch(self) -> None:
        if self._batch_bytes >= BATCH_BYTES or len(self._batch) >= BATCH_CHUNKS:
            await self._write_batch()

    async def finish(self) -> str:
        """Write what is left and return the SHA-256 of everything, in hex."""
        await self._write_batch()
        await self._write_batch()
        return self._digest.hexdigest()

    async def _write_batch(self) -> None:
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        if self._under_way is not None:
            await asyncio.wrap_future(self._under_way)
        self._under_way = self._scratch.begin(self._write, batch)

    def _write(self, batch: list[memoryview]) -> None:
        data = memoryview(b"".join(batch))
        self._digest.update(data)
        try:
            while data:
                data = data[os.write(self.descriptor, data) :]
        except OSError as error:
            if error.errno in _FULL:
                message = "There is no room for the checkpoint on the service's scratch disk."
                raise ServiceError("no_space", message, retryable=True) from error
            raise


def too_large(max_bytes: int) -> ServiceError:
    """Return the refusal of a checkpoint that is larger than this service takes."""
    message = f"The checkpoint is larger than the {max_bytes} bytes that this service takes."
    return ServiceError("too_large", message, max_upload_bytes=max_bytes)

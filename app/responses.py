"""A result on its way out: read from the upload and the run's new bytes, a block ahead, and never held in memory."""

from __future__ import annotations

import asyncio
import json
import os
import zlib
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from app.archive import StoredZip
from app.digests import repr_digest
from app.errors import ServiceError
from app.filenames import attachment, migrated_name
from app.run_request import NEW_BYTES_NAME
from app.runs import Done
from app.scratch import Scratch

FILE_TYPE = "application/octet-stream"
ZIP_TYPE = "application/zip"
JSON_TYPE = "application/json"

BLOCK_BYTES = 2**20

# What is liked less than this is not wanted (RFC 9110, 12.4.2: three digits).
_LEAST = 0.001


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes of an open file."""

    descriptor: int
    offset: int
    count: int


async def answer_migrated(
    done: Done,
    scratch: Scratch,
    *,
    media_type: str,
    filename: str | None = None,
    digest_algorithm: str | None = None,
) -> Response:
    """Answer with the migrated file, or with a zip of it and the full report; with a digest where one is wanted."""
    filename = done.upload.filename or filename
    new_bytes = await scratch.do(scratch.open, NEW_BYTES_NAME)
    descriptors = {"source": done.upload.descriptor, "new": new_bytes}
    extents = [
        Extent(descriptors[which], offset, count) for which, offset, count in done.result["pieces"]
    ]
    size = sum(extent.count for extent in extents)
    headers = {"Migration-Report": done.result["header"]}
    read = partial(read_blocks, extents)
    name = migrated_name(filename, extension=new_extension(done.result["report"]))
    if media_type == ZIP_TYPE:
        report = json.dumps(done.result["report"], indent=2).encode("ascii")
        archive = StoredZip("report.json", report, name, size)
        read, size = partial(_read_zip, archive, extents), archive.size
        name = migrated_name(filename, extension=".zip")
    headers |= {"Content-Length": str(size), "Content-Disposition": attachment(name)}
    if digest_algorithm is not None:
        headers["Repr-Digest"] = await scratch.do(repr_digest, digest_algorithm, read())
    content = stream(scratch, read())
    return StreamingResponse(content, headers=headers, media_type=media_type)


def new_extension(report: Mapping[str, Any]) -> str | None:
    """The extension of what came in fits no more where a run went from or to safetensors."""
    source, target = report["source"]["format"], report["target"]["format"]
    if source != target and "safetensors" in (source, target):
        return ".safetensors" if target == "safetensors" else ".pt"
    return None


async def stream(scratch: Scratch, blocks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Hand out blocks, each read by the scratch's thread while the one before is sent."""
    ahead = scratch.begin(next, blocks, b"")
    while block := await asyncio.wrap_future(ahead):
        ahead = scratch.begin(next, blocks, b"")
        yield block


def read_blocks(extents: Iterable[Extent]) -> Iterator[bytes]:
    """Read the extents one after the other, in blocks that small ones share.

    Raises:
        EOFError: a file is shorter than its extents say.
    """
    parts: list[bytes] = []
    room = BLOCK_BYTES
    for extent in extents:
        offset, end = extent.offset, extent.offset + extent.count
        while offset < end:
            part = os.pread(extent.descriptor, min(room, end - offset), offset)
            if not part:
                raise EOFError(f"{end - offset} bytes are missing from {offset} on")
            parts.append(part)
            offset += len(part)
            room -= len(part)
            if not room:
                yield b"".join(parts)
                parts, room = [], BLOCK_BYTES
    if parts:
        yield b"".join(parts)


def _read_zip(archive: StoredZip, extents: Iterable[Extent]) -> Iterator[bytes]:
    yield archive.head()
    crc = 0
    for block in read_blocks(extents):
        crc = zlib.crc32(block, crc)
        yield block
    yield archive.tail(crc)


def negotiate(request: Request, *, has_jobs: bool = False) -> str:
    """Return the type to answer with: the file, unless another is named and liked no less.

    Args:
        request: whose Accept header it is.
        has_jobs: whether the JSON of a finished job is among what can be had.

    Raises:
        ServiceError: the client wants nothing that there is.
    """
    liked = _liked(request.headers.get("accept") or "*/*")
    anything = liked.get("application/*", liked.get("*/*", 0.0))
    file = liked.get(FILE_TYPE, anything)
    others = (ZIP_TYPE, JSON_TYPE) if has_jobs else (ZIP_TYPE,)
    best = max(others, key=lambda other: liked.get(other, 0.0))
    if liked.get(best, 0.0) >= max(file, _LEAST):
        return best
    if file:
        return FILE_TYPE
    message = (
        f"The answer is {FILE_TYPE}, or {' or '.join(others)} with the report; Accept names none."
    )
    raise ServiceError("not_acceptable", message)


def _liked(accept: str) -> dict[str, float]:
    """Return how much each media type is liked, from 0 to 1 (RFC 9110, 12.5.1)."""
    liked = {}
    for entry in accept.split(","):
        media_type, *parameters = (part.strip().lower() for part in entry.split(";"))
        weights = [p[2:] for p in parameters if p.startswith("q=")]
        try:
            liked[media_type] = float(weights[0]) if weights else 1.0
        except ValueError:
            liked[media_type] = 1.0
    return liked

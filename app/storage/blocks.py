"""Bytes on their way from one place to another: what has come in, and what goes out, a block at a time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from app.copying import FULL, Tell
from app.errors import ServiceError
from app.responses import Extent, read_blocks
from app.threads import Check, until_abandoned
from app.uploads import too_large


@dataclass(frozen=True, slots=True)
class Fetched:
    """The size in bytes and the SHA-256, in hex, of what was fetched."""

    size: int
    digest: str


async def write_blocks(
    blocks: AsyncIterator[bytes], target: Path, *, max_bytes: int, tell: Tell
) -> Fetched:
    """Write what comes to a new file, which is there when it is whole, and have the disk keep it.

    Raises:
        ServiceError: it is larger than it may be, or the disk is full.
    """
    digest = hashlib.sha256()
    size = 0
    partial_file = target.with_name(f".{target.name}.part")
    with partial_file.open("wb", buffering=0) as file:
        async for block in blocks:
            size += len(block)
            if size > max_bytes:
                raise too_large(max_bytes)
            await until_abandoned(partial(_digest_and_write, file.fileno(), block, digest.update))
            tell(size)
        await until_abandoned(lambda _: os.fsync(file.fileno()))
    partial_file.rename(target)
    return Fetched(size, digest.hexdigest())


def _digest_and_write(
    descriptor: int, block: bytes, digest: Callable[[bytes], None], check: Check
) -> None:
    digest(block)
    write_block(descriptor, block, check)


def write_block(descriptor: int, block: bytes, check: Check, *, place: int | None = None) -> None:
    """Write bytes to an open file, at a place of it or where it stands; `check` may end it.

    Raises:
        ServiceError: the disk is full.
    """
    left = memoryview(block)
    try:
        while left:
            check()
            if place is None:
                written = os.write(descriptor, left)
            else:
                written = os.pwrite(descriptor, left, place)
                place += written
            left = left[written:]
    except OSError as error:
        if error.errno in FULL:
            message = "The disk that jobs are kept on is full."
            raise ServiceError("no_space", message, retryable=True) from error
        raise


async def blocks_of(extents: Iterable[Extent], tell: Tell) -> AsyncIterator[bytes]:
    """Hand out the bytes of these extents, read by a thread."""
    reader = read_blocks(list(extents))
    sent = 0
    while block := await until_abandoned(lambda _: next(reader, b"")):
        yield bytes(block)
        sent += len(block)
        tell(sent)

"""Compares the bytes of a source with their checksums, in threads of its own, while other work goes on.

A CRC-32 is carried over for what is copied as a range, so damage would travel on unseen; and it costs little to look:
`zlib.crc32` releases the interpreter's lock, and the bytes are read in any case.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from migrate_ckpt.errors import UnreadableCheckpoint
from migrate_ckpt.formats.partial_source import PartialSource
from migrate_ckpt.formats.source import BLOCK_BYTES, Source


class Checksum(NamedTuple):
    """What the source says of a range of its bytes; a CRC of 0 says nothing (torch can be told not to compute them)."""

    name: str
    offset: int
    size: int
    crc: int


class Verification:
    """A look at all bytes of a source, under way from the moment it is made."""

    def __init__(self, source: Source, checksums: Iterable[Checksum], *, threads: int = 1) -> None:
        known = [checksum for checksum in checksums if checksum.size]
        self._says_all = bool(known) and all(checksum.crc for checksum in known)
        if isinstance(source, PartialSource):
            there = [checksum for checksum in known if source.has(checksum.offset, checksum.size)]
            self._says_all = self._says_all and len(there) == len(known)
            known = there
        self._source = source
        self._is_cancelled = False
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="verify")
        told = [checksum for checksum in known if checksum.crc]
        # Between two that are there may be one that is not.
        is_whole = not isinstance(source, PartialSource)
        batches = _batches(told) if is_whole else ([checksum] for checksum in told)
        self._futures: list[Future[None]] = [
            self._pool.submit(self._check, batch) for batch in batches
        ]

    def finish(self) -> bool:
        """Wait for the end; gives whether all that is stored had a checksum.

        Raises:
            UnreadableCheckpoint: Something is damaged; names the first record.
        """
        try:
            for future in self._futures:
                future.result()
        finally:
            self.cancel()
        return self._says_all

    def cancel(self) -> None:
        """Stop looking, and wait until nothing reads the source any more."""
        self._is_cancelled = True
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _check(self, batch: list[Checksum]) -> None:
        if len(batch) == 1:
            self._compare(batch[0], self._crc_of(batch[0]))
            return
        start = batch[0].offset
        data = memoryview(self._source.read(start, batch[-1].offset + batch[-1].size - start))
        for checksum in batch:
            begin = checksum.offset - start
            self._compare(checksum, zlib.crc32(data[begin : begin + checksum.size]))

    def _crc_of(self, checksum: Checksum) -> int:
        crc, end = 0, checksum.offset + checksum.size
        for start in range(checksum.offset, end, BLOCK_BYTES):
            if self._is_cancelled:
                return checksum.crc
            crc = zlib.crc32(self._source.read(start, min(BLOCK_BYTES, end - start)), crc)
        return crc

    def _compare(self, checksum: Checksum, crc: int) -> None:
        if crc != checksum.crc:
            raise UnreadableCheckpoint(
                f"the file is damaged: the bytes of {checksum.name!r} are not those that were saved. "
                "Fetch it again from where it came from"
            )


def _batches(checksums: Iterable[Checksum]) -> Iterator[list[Checksum]]:
    """Large records one by one; small ones that are near each other together, to be read at once."""
    batch: list[Checksum] = []
    for checksum in checksums:
        if batch and checksum.offset + checksum.size - batch[0].offset > BLOCK_BYTES:
            yield batch
            batch = []
        batch.append(checksum)
    if batch:
        yield batch

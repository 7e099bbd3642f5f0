"""An object that is fetched in part: the bytes lie where they belong, and it is known which there are."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("obstore", reason="the extra [jobs] is not installed")

from obstore.store import MemoryStore

from app.errors import ServiceError
from app.responses import Extent
from app.storage import buckets, part_fetching
from app.storage.locations import Location
from app.storage.part_fetching import PartialFile, RemoteObject, RemoteRange
from app.storage.remote_blocks import blocks_of_any

PLACE = Location("s3", "bucket", "key")
DATA = bytes(range(256)) * 4096


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    store = MemoryStore()
    store.put("key", DATA)
    monkeypatch.setattr(buckets, "store_of", lambda scheme, bucket: store)
    return store


def looked_at() -> RemoteObject:
    size, e_tag = asyncio.run(buckets.look_at_object(PLACE))
    assert e_tag is not None
    return RemoteObject(PLACE, e_tag, size)


def test_ranges_lie_where_they_belong(store: Any, tmp_path: Path) -> None:
    part = PartialFile(looked_at(), tmp_path / "upload")
    part.create()

    assert asyncio.run(part.fetch([(1000, 500), (700_000, 4096)])) == 4596
    assert asyncio.run(part.fetch([(0, 10)])) == 10

    assert part.present() == [(0, 10), (1000, 500), (700_000, 4096)]
    content = (tmp_path / "upload").read_bytes()
    assert len(content) == len(DATA)
    for offset, count in part.present():
        assert content[offset : offset + count] == DATA[offset : offset + count]
    assert (tmp_path / "upload").stat().st_blocks * 512 < len(DATA) / 4


def test_beginning_and_end_come_first(store: Any, tmp_path: Path) -> None:
    part = PartialFile(looked_at(), tmp_path / "upload")
    part.create()

    count = asyncio.run(part.fetch_first())

    (start, _), (last, length) = part.present()
    assert (start, last + length) == (0, len(DATA))
    assert count < len(DATA)


def test_object_that_is_another_one_by_now_is_refused(store: MemoryStore, tmp_path: Path) -> None:
    remote = looked_at()
    part = PartialFile(remote, tmp_path / "upload")
    part.create()
    store.put("key", DATA[::-1])

    with pytest.raises(ServiceError) as refused:
        asyncio.run(part.fetch([(0, 10)]))

    assert refused.value.error_type == "source_changed"
    assert looked_at().identity != remote.identity


def test_large_range_comes_in_pieces_and_it_is_told_how_far_it_is(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_fetching, "CHUNK_BYTES", 100_000)
    part = PartialFile(looked_at(), tmp_path / "upload")
    part.create()
    told: list[int] = []

    asyncio.run(part.fetch([(5, len(DATA) - 5)], told.append))

    assert (tmp_path / "upload").read_bytes()[5:] == DATA[5:]
    assert len(told) == 11
    assert told == sorted(told)
    assert told[-1] == len(DATA) - 5


def test_none_goes_on_writing_once_one_has_failed(
    store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = PartialFile(looked_at(), tmp_path / "upload")
    part.create()
    ended: list[int] = []

    async def read_range(location: Any, e_tag: str, offset: int, count: int) -> Any:
        if offset == 0:
            raise ServiceError("source_changed", "It was changed.")
        try:
            await asyncio.sleep(60)
            yield b""
        finally:
            ended.append(offset)

    monkeypatch.setattr(buckets, "read_range", read_range)
    with pytest.raises(ServiceError, match="changed"):
        asyncio.run(part.fetch([(10, 5), (20, 5), (0, 5)]))

    assert sorted(ended) == [10, 20]
    assert part.present() == []


def test_what_is_here_and_what_is_there_come_in_their_order(store: Any, tmp_path: Path) -> None:
    (tmp_path / "new").write_bytes(b"new bytes")
    remote = looked_at()
    told: list[int] = []

    async def collect(file: Any) -> bytes:
        extents = [
            Extent(file.fileno(), 0, 3),
            RemoteRange(remote, 100, 50),
            RemoteRange(remote, 10, 5),
            Extent(file.fileno(), 3, 6),
        ]
        return b"".join([block async for block in blocks_of_any(extents, told.append)])

    with (tmp_path / "new").open("rb") as file:
        made = asyncio.run(collect(file))

    assert made == b"new" + DATA[100:150] + DATA[10:15] + b" bytes"
    assert told[-1] == len(made)

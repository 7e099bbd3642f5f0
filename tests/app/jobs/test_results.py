"""Results are kept whole, for their time, and in no more bytes than they may take: in a folder and in a bucket."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from app.errors import ServiceError
from app.jobs.local_results import LocalResults
from app.jobs.results import KeptResult, Results
from app.responses import Extent

TTL_SECONDS = 1000


class Shelf:
    """Kept results, a clock that the test sets, and a file to make results of."""

    def __init__(self, folder: Path, *, max_bytes: int = 100) -> None:
        (folder / "source").write_bytes(bytes(range(256)))
        self.descriptor = os.open(folder / "source", os.O_RDONLY)
        # A bucket goes by the time of day.
        self.now = time.time()
        self.folder = folder / "results"
        self.max_bytes = max_bytes
        self.results = self.open()

    def open(self) -> Results:
        return LocalResults(
            self.folder, ttl_seconds=TTL_SECONDS, max_bytes=self.max_bytes, clock=lambda: self.now
        )

    def keep(self, name: str, *extents: tuple[int, int]) -> KeptResult:
        pieces = [Extent(self.descriptor, offset, count) for offset, count in extents]
        return asyncio.run(self.results.keep(name, {"said": name}, pieces, lambda _: None))

    def find(self, name: str) -> KeptResult | None:
        return asyncio.run(self.results.find(name))

    def renew(self, name: str) -> KeptResult | None:
        return asyncio.run(self.results.renew(name))

    def remove_expired(self) -> None:
        asyncio.run(self.results.remove_expired())

    def names(self) -> list[str]:
        """The results that take room."""
        return sorted(path.name for path in self.folder.iterdir())


class BucketShelf(Shelf):
    """The same in a bucket, of which the test holds all that is in memory."""

    def __init__(self, folder: Path) -> None:
        from obstore.store import MemoryStore

        self.store = MemoryStore()
        super().__init__(folder)

    def open(self) -> Results:
        from app.jobs.bucket_results import BucketResults
        from app.storage.shared_bucket import SharedBucket

        return BucketResults(
            SharedBucket(self.store, "memory://"),
            ttl_seconds=TTL_SECONDS,
            max_bytes=self.max_bytes,
            scratch_root=self.folder.parent,
            clock=lambda: self.now,
        )

    def keys(self) -> list[str]:
        import obstore

        return [each["path"] for batch in obstore.list(self.store) for each in batch]

    def names(self) -> list[str]:
        return sorted({key.split("/")[1] for key in self.keys()})


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    shelf = Shelf(tmp_path)
    yield shelf
    os.close(shelf.descriptor)


@pytest.fixture
def bucket_shelf(tmp_path: Path) -> Iterator[BucketShelf]:
    pytest.importorskip("obstore", reason="the extra [jobs] is not installed")
    shelf = BucketShelf(tmp_path)
    yield shelf
    os.close(shelf.descriptor)


@pytest.fixture(params=["shelf", "bucket_shelf"])
def any_shelf(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def content(kept: KeptResult | None) -> bytes:
    assert kept is not None

    async def read() -> bytes:
        with ExitStack() as stack:
            extent = await kept.open(stack)
            opened = os.pread(extent.descriptor, 1000, extent.offset)
            assert extent.count == len(opened)
        assert b"".join([block async for block in kept.blocks()]) == opened
        return opened

    return asyncio.run(read())


def test_result_is_its_extents_one_after_the_other(any_shelf: Shelf) -> None:
    kept = any_shelf.keep("a", (10, 3), (200, 2), (0, 1))

    assert content(kept) == bytes([10, 11, 12, 200, 201, 0])
    assert (kept.size, kept.facts) == (6, {"said": "a"})
    assert kept.expires == pytest.approx(any_shelf.now + TTL_SECONDS, abs=5)
    any_shelf.results = any_shelf.open()
    found = any_shelf.find("a")
    assert content(found) == content(kept)
    assert found is not None
    assert found.facts == kept.facts


def test_result_expires_and_is_renewed_when_it_is_needed_again(shelf: Shelf) -> None:
    shelf.keep("a", (0, 1))
    shelf.keep("b", (0, 1))
    shelf.now += 900
    renewed = shelf.renew("a")
    shelf.now += 200
    shelf.remove_expired()

    assert renewed is not None
    assert renewed.expires == pytest.approx(shelf.now - 200 + TTL_SECONDS)
    assert shelf.names() == ["a"]
    assert shelf.find("b") is None
    assert shelf.renew("b") is None


def test_result_of_a_bucket_expires_at_once_and_goes_later(bucket_shelf: BucketShelf) -> None:
    from app.jobs.bucket_results import GRACE_SECONDS

    bucket_shelf.keep("a", (0, 1))
    bucket_shelf.now += TTL_SECONDS + 5
    bucket_shelf.remove_expired()

    # Another process's clock may be behind, and its client just about to fetch it.
    assert bucket_shelf.find("a") is None
    assert bucket_shelf.renew("a") is None
    assert bucket_shelf.names() == ["a"]

    bucket_shelf.now += GRACE_SECONDS
    bucket_shelf.remove_expired()
    assert bucket_shelf.keys() == []


def test_result_of_a_bucket_is_renewed(bucket_shelf: BucketShelf) -> None:
    kept = bucket_shelf.keep("a", (0, 1))
    time.sleep(1.1)

    renewed = bucket_shelf.renew("a")
    found = bucket_shelf.find("a")

    assert renewed is not None
    assert found is not None
    assert found.expires > kept.expires + 1
    assert len(bucket_shelf.keys()) == 2


def test_what_a_killed_process_has_left_in_a_bucket_goes_later(bucket_shelf: BucketShelf) -> None:
    import obstore

    from app.jobs.bucket_results import GRACE_SECONDS

    obstore.put(bucket_shelf.store, "results/a/1234/checkpoint", b"x")
    bucket_shelf.remove_expired()

    assert bucket_shelf.find("a") is None
    assert bucket_shelf.names() == ["a"]

    bucket_shelf.now += GRACE_SECONDS + 5
    bucket_shelf.remove_expired()
    assert bucket_shelf.keys() == []


def test_result_that_two_processes_keep_is_found_as_long_as_one_is_there(
    bucket_shelf: BucketShelf,
) -> None:
    first = bucket_shelf.keep("a", (0, 4))
    second = bucket_shelf.keep("a", (0, 4))

    assert content(first) == content(second) == bytes(range(4))
    assert len(bucket_shelf.keys()) == 4
    asyncio.run(bucket_shelf.results._bucket.remove([second.key]))  # type: ignore[attr-defined]
    assert content(bucket_shelf.find("a")) == bytes(range(4))


def test_result_of_a_bucket_that_is_gone_is_said_to_have_expired(bucket_shelf: BucketShelf) -> None:
    kept = bucket_shelf.keep("a", (0, 4))
    asyncio.run(bucket_shelf.results._bucket.remove([kept.key]))  # type: ignore[attr-defined]

    with pytest.raises(ServiceError) as caught:
        content(kept)

    assert caught.value.error_type == "result_expired"


def test_oldest_results_give_way_to_a_new_one(any_shelf: Shelf) -> None:
    for name in "abc":
        any_shelf.keep(name, (0, 40))
        any_shelf.now += 1
        time.sleep(0.01)

    assert any_shelf.names() == ["b", "c"]


def test_result_that_is_larger_than_all_may_be_is_refused_and_removes_none(
    any_shelf: Shelf,
) -> None:
    any_shelf.keep("a", (0, 40))

    with pytest.raises(ServiceError, match="has 101 bytes") as caught:
        any_shelf.keep("b", (0, 101))

    assert caught.value.error_type == "too_large"
    assert any_shelf.names() == ["a"]


def test_copy_that_ends_early_leaves_nothing(any_shelf: Shelf) -> None:
    with pytest.raises(EOFError):
        any_shelf.keep("a", (250, 7))

    assert any_shelf.names() == []


def test_what_a_killed_copy_has_left_is_removed_at_the_start(shelf: Shelf) -> None:
    (shelf.folder / ".half").mkdir()
    (shelf.folder / ".half" / "checkpoint").write_bytes(b"x")

    shelf.open()

    assert list(shelf.folder.iterdir()) == []


def test_same_result_twice_is_one(shelf: Shelf) -> None:
    shelf.keep("a", (0, 4))
    kept = shelf.keep("a", (0, 4))

    assert content(kept) == bytes(range(4))
    assert shelf.names() == ["a"]


def test_one_result_is_kept_by_many_at_once(shelf: Shelf) -> None:
    def keep(number: int) -> bytes:
        return content(shelf.keep("a", (0, 50)))

    with ThreadPoolExecutor(8) as pool:
        kept = set(pool.map(keep, range(200)))

    assert kept == {bytes(range(50))}
    assert shelf.names() == ["a"]


def test_many_results_push_each_other_out_at_once(shelf: Shelf) -> None:
    def keep(number: int) -> int:
        return shelf.keep(str(number % 5), (0, 40)).size

    with ThreadPoolExecutor(8) as pool:
        sizes = set(pool.map(keep, range(200)))

    assert sizes == {40}


def test_result_that_has_expired_gives_way_to_a_new_one(shelf: Shelf) -> None:
    shelf.keep("a", (0, 10))
    shelf.now += TTL_SECONDS + 5

    kept = shelf.keep("a", (0, 10))

    assert kept == shelf.find("a")
    assert kept.expires == pytest.approx(shelf.now + TTL_SECONDS)

"""Results are kept whole, for their time, and in no more of the disk than they may take."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.errors import ServiceError
from app.jobs.results import KeptResult, Results
from app.responses import Extent


class Shelf:
    """Kept results, a clock that the test sets, and a file to make results of."""

    def __init__(self, folder: Path, *, max_bytes: int = 100) -> None:
        (folder / "source").write_bytes(bytes(range(256)))
        self.descriptor = os.open(folder / "source", os.O_RDONLY)
        self.now = 1000.0
        self.folder = folder / "results"
        self.max_bytes = max_bytes
        self.results = self.open()

    def open(self) -> Results:
        return Results(
            self.folder, ttl_seconds=10, max_bytes=self.max_bytes, clock=lambda: self.now
        )

    def keep(self, name: str, *extents: tuple[int, int]) -> KeptResult:
        pieces = [Extent(self.descriptor, offset, count) for offset, count in extents]
        return self.results.keep(name, {"said": name}, pieces, on_copied=lambda _: None)


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    shelf = Shelf(tmp_path)
    yield shelf
    os.close(shelf.descriptor)


def test_result_is_its_extents_one_after_the_other(shelf: Shelf) -> None:
    kept = shelf.keep("a", (10, 3), (200, 2), (0, 1))

    assert kept.path.read_bytes() == bytes([10, 11, 12, 200, 201, 0])
    assert (kept.size, kept.facts, kept.expires) == (6, {"said": "a"}, 1010)
    assert shelf.open().find("a") == kept


def test_result_expires_and_is_renewed_when_it_is_needed_again(shelf: Shelf) -> None:
    shelf.keep("a", (0, 1))
    shelf.keep("b", (0, 1))
    shelf.now += 9
    renewed = shelf.results.renew("a")
    shelf.now += 2
    shelf.results.remove_expired()

    assert renewed is not None
    assert renewed.expires == 1019
    assert [path.name for path in shelf.folder.iterdir()] == ["a"]
    assert shelf.results.find("b") is None
    assert shelf.results.renew("b") is None


def test_oldest_results_give_way_to_a_new_one(shelf: Shelf) -> None:
    for name in "abc":
        shelf.keep(name, (0, 40))
        shelf.now += 1

    assert sorted(path.name for path in shelf.folder.iterdir()) == ["b", "c"]


def test_result_that_is_larger_than_all_may_be_is_refused_and_removes_none(shelf: Shelf) -> None:
    shelf.keep("a", (0, 40))

    with pytest.raises(ServiceError, match="has 101 bytes") as caught:
        shelf.keep("b", (0, 101))

    assert caught.value.error_type == "too_large"
    assert [path.name for path in shelf.folder.iterdir()] == ["a"]


def test_copy_that_ends_early_leaves_nothing(shelf: Shelf) -> None:
    with pytest.raises(EOFError):
        shelf.keep("a", (250, 7))

    assert list(shelf.folder.iterdir()) == []


def test_what_a_killed_copy_has_left_is_removed_at_the_start(shelf: Shelf) -> None:
    (shelf.folder / ".half").mkdir()
    (shelf.folder / ".half" / "checkpoint").write_bytes(b"x")

    shelf.open()

    assert list(shelf.folder.iterdir()) == []


def test_same_result_twice_is_one(shelf: Shelf) -> None:
    shelf.keep("a", (0, 4))
    kept = shelf.keep("a", (0, 4))

    assert kept.path.read_bytes() == bytes(range(4))
    assert len(list(shelf.folder.iterdir())) == 1


def test_one_result_is_kept_by_many_at_once(shelf: Shelf) -> None:
    def keep(number: int) -> bytes:
        return shelf.keep("a", (0, 50)).path.read_bytes()

    with ThreadPoolExecutor(8) as pool:
        kept = set(pool.map(keep, range(200)))

    assert kept == {bytes(range(50))}
    assert [path.name for path in shelf.folder.iterdir()] == ["a"]


def test_many_results_push_each_other_out_at_once(shelf: Shelf) -> None:
    def keep(number: int) -> int:
        return shelf.keep(str(number % 5), (0, 40)).size

    with ThreadPoolExecutor(8) as pool:
        sizes = set(pool.map(keep, range(200)))

    assert sizes == {40}


def test_result_that_has_expired_gives_way_to_a_new_one(shelf: Shelf) -> None:
    shelf.keep("a", (0, 10))
    shelf.now += 11

    kept = shelf.keep("a", (0, 10))

    assert kept == shelf.results.find("a")
    assert kept.expires == 1021

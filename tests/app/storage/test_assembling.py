"""Delivering what is still in its source: copied by the store where it does that, and otherwise streamed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("obstore", reason="the extra [jobs] is not installed")

from obstore.store import MemoryStore

from app.responses import Extent
from app.settings import Settings
from app.storage import buckets
from app.storage.buckets import FINGERPRINT
from app.storage.locations import Location
from app.storage.part_copies import Moved, NoPartCopies, PartCopies
from app.storage.part_fetching import RemoteObject, RemoteRange
from app.storage.transfers import Transfers

DATA = bytes(range(256)) * 40_000
TARGET = Location("s3", "bucket", "out/new")


class Copies:
    """What a store does with an order to assemble."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error
        self.orders: list[Any] = []

    def write(self, *order: Any) -> Moved:
        self.orders.append(order)
        if self._error is not None:
            raise self._error
        return Moved(copied_bytes=1)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    store = MemoryStore()
    store.put("in/old", DATA)
    monkeypatch.setattr(buckets, "store_of", lambda scheme, bucket: store)
    return store


def deliver(store: MemoryStore, scheme: Any, tmp_path: Path) -> None:
    place = Location(scheme, "bucket", "in/old")
    size, e_tag = asyncio.run(buckets.look_at_object(place))
    assert e_tag is not None
    source = RemoteObject(place, e_tag, size)
    settings = Settings(migrations_folder=tmp_path, allowed_destinations=("s3://bucket/out",))
    (tmp_path / "new").write_bytes(b"new")
    with (tmp_path / "new").open("rb") as file:
        asyncio.run(
            Transfers.from_settings(settings).deliver(
                [Extent(file.fileno(), 0, 3), RemoteRange(source, 5, 9_000_000)],
                TARGET,
                "a fingerprint",
                lambda _: None,
                writer="job",
                may_replace=False,
            )
        )


def test_store_that_copies_no_parts_is_written_in_a_stream(
    store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = Copies(NoPartCopies("NotImplemented"))
    monkeypatch.setattr(PartCopies, "from_environment", lambda: copies)

    deliver(store, "s3", tmp_path)

    assert len(copies.orders) == 1
    assert bytes(store.get("out/new").bytes()) == b"new" + DATA[5:9_000_005]
    assert store.get("out/new").attributes[FINGERPRINT] == "a fingerprint"


@pytest.mark.parametrize(("scheme", "is_installed"), [("s3", False), ("gs", True)])
def test_without_the_library_or_between_two_stores_it_is_written_in_a_stream(
    scheme: str,
    is_installed: bool,
    store: MemoryStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copies = Copies()
    monkeypatch.setattr(PartCopies, "from_environment", lambda: copies if is_installed else None)

    deliver(store, scheme, tmp_path)

    assert not copies.orders
    assert bytes(store.get("out/new").bytes()) == b"new" + DATA[5:9_000_005]


def test_store_that_copies_parts_is_sent_nothing_else(
    store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = Copies()
    monkeypatch.setattr(PartCopies, "from_environment", lambda: copies)

    deliver(store, "s3", tmp_path)

    [(destination, extents, fingerprint, _, _)] = copies.orders
    assert (destination, fingerprint) == (TARGET, "a fingerprint")
    assert [extent.count for extent in extents] == [3, 9_000_000]
    assert not store.list("out").collect()

"""A thread has ended when whoever began it goes on, cancelled or not."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.responses import Extent
from app.storage.allowed import AllowedLocations
from app.storage.blocks import write_blocks
from app.storage.locations import Location
from app.threads import Abandoned, Check, until_abandoned


def test_result_is_handed_on() -> None:
    assert asyncio.run(until_abandoned(lambda check: 3)) == 3


def test_cancelled_work_has_ended_when_its_beginner_goes_on() -> None:
    began, ends = threading.Event(), []

    def work(check: Check) -> None:
        began.set()
        try:
            for _ in range(500):
                check()
                time.sleep(0.01)
        except Abandoned:
            ends.append("abandoned")
            raise

    async def test() -> None:
        task = asyncio.ensure_future(until_abandoned(work))
        await asyncio.to_thread(began.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ends == ["abandoned"]

    asyncio.run(test())


def test_cancelled_download_writes_to_no_file_that_is_opened_after_it(tmp_path: Path) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 2**22
            await asyncio.sleep(0)

    async def test() -> None:
        for number in range(20):
            writing = write_blocks(
                endless(), tmp_path / "source", max_bytes=2**40, tell=lambda _: None
            )
            task = asyncio.ensure_future(writing)
            await asyncio.sleep(0.005 * (number % 4))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            # It has the lowest number that is free: that of the download, most likely.
            other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
            await asyncio.sleep(0.02)
            assert os.fstat(other).st_size == 0
            os.close(other)

    asyncio.run(test())


def test_cancelled_delivery_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("tenacity", reason="the extra [jobs] is not installed")
    from app.outbound.networks import Networks
    from app.storage.transfers import Transfers

    (tmp_path / "out").mkdir()
    (tmp_path / "result").write_bytes(b"x" * 2**20)
    allowed = AllowedLocations.of("destination", [f"file://{tmp_path}/out"])
    transfers = Transfers(allowed, allowed, Networks(), 2**40, 60)
    told = threading.Event()

    def tell(written: int) -> None:
        told.set()
        time.sleep(0.01)

    async def test() -> None:
        descriptor = os.open(tmp_path / "result", os.O_RDONLY)
        extents = [Extent(descriptor, 0, 2**20)] * 1000
        target = Location("file", "", str(tmp_path / "out" / "new"))
        task = asyncio.ensure_future(
            transfers.deliver(extents, target, "f", tell, writer="a", may_replace=False)
        )
        await asyncio.to_thread(told.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        os.close(descriptor)

    asyncio.run(test())

    assert list((tmp_path / "out").iterdir()) == []

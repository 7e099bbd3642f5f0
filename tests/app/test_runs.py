from __future__ import annotations

import asyncio
from typing import NoReturn

import pytest

from app import runs
from app.errors import ServiceError
from app.runs import _stalled, _unless
from app.scratch_room import Place


async def never() -> NoReturn:
    await asyncio.Event().wait()
    raise AssertionError


def test_work_that_is_done_is_returned_and_the_watch_is_over() -> None:
    async def work() -> int:
        return 7

    async def story() -> None:
        assert await _unless(work(), never()) == 7
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(story())


def test_work_is_cancelled_and_waited_for_when_something_ends_it() -> None:
    ended = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            ended.append("work")

    async def end() -> NoReturn:
        raise ServiceError("stopping", "No more.")

    with pytest.raises(ServiceError, match=r"No more\."):
        asyncio.run(_unless(work(), never(), end()))

    assert ended == ["work"]


def test_what_the_work_raises_is_raised() -> None:
    async def work() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        asyncio.run(_unless(work(), never()))


def test_upload_that_stands_still_is_ended_and_one_that_goes_on_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runs, "STALL_SECONDS", 0.1)
    place = Place(is_large=False)

    async def upload() -> None:
        while place.received < 10 * runs.STALL_BYTES:
            place.received += runs.STALL_BYTES
            await asyncio.sleep(0.005)
        await asyncio.sleep(60)

    with pytest.raises(ServiceError) as caught:
        asyncio.run(_unless(upload(), _stalled(place)))

    assert caught.value.error_type == "upload_stalled"
    assert place.received == 10 * runs.STALL_BYTES

from __future__ import annotations

import asyncio

import pytest

from app import watching as watching_module
from app.watching import watching


def test_one_that_fails_keeps_no_other_from_being_looked_at(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watching_module, "POLL_SECONDS", 0.001)
    looked = []

    def fail() -> None:
        raise OSError("gone")

    async def story() -> None:
        async with watching(fail, lambda: looked.append(True)):
            while len(looked) < 3:
                await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(story(), 10))

    assert "gone" in caplog.text


def test_nothing_is_looked_at_when_the_block_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching_module, "POLL_SECONDS", 0.001)
    looked = []

    async def story() -> int:
        async with watching(lambda: looked.append(True)):
            await asyncio.sleep(0.02)
        count = len(looked)
        await asyncio.sleep(0.02)
        return count

    assert asyncio.run(story()) == len(looked)

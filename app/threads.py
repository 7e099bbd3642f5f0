"""Work in a thread that outlasts nobody: whoever is cancelled waits until it has ended.

What it works on, open files for example, is closed by whoever began it. A thread that went on behind their
back would write to whatever was opened under the same number by then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

Check = Callable[[], None]
"""Raises Abandoned when what is being done is not wanted any more."""


class Abandoned(Exception):
    """Ends work that is not wanted any more."""


async def until_abandoned(work: Callable[[Check], T]) -> T:
    """Have a thread do this. When we are cancelled, the check that it is given ends it, and we wait for that."""
    is_abandoned = False

    def check() -> None:
        if is_abandoned:
            raise Abandoned

    working = asyncio.ensure_future(asyncio.to_thread(work, check))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        is_abandoned = True
        await asyncio.gather(working, return_exceptions=True)
        raise

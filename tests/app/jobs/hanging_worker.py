"""A worker in a process of its own, for tests that kill it: `python -m tests.app.jobs.hanging_worker URL [callback]`.

It says `ready`, and then which steps have begun; the second step of each job never ends.
"""

from __future__ import annotations

import asyncio
import sys

from app.jobs.dbos_engine import DbosEngine
from tests.app.jobs.test_engine import Recorder, hangs


class Teller(list[str]):
    def append(self, begun: str) -> None:
        print(begun, flush=True)


async def work(database_url: str) -> None:
    recorder = Recorder(second=hangs)
    recorder.begun = Teller()
    async with DbosEngine(database_url, concurrency=1).run(recorder):
        print("ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1]))

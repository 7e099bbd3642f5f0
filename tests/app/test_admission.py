from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any

import pytest

from app.admission import GROWTH_BYTES, Admission
from app.errors import ServiceError
from app.scratch_room import SPARE_BYTES
from app.turns import Limits

MB, GB = 2**20, 2**30


class Disk:
    """A disk that fills as the test says."""

    def __init__(self, free: int) -> None:
        self.free = free + SPARE_BYTES

    def __call__(self) -> int:
        return self.free


def admission(*, runs: int = 2, max_queued: int = 2, free: int = 10 * GB) -> Admission:
    return Admission(
        Limits(runs, 64 * GB),
        max_queued=max_queued,
        run_memory_bytes=4 * GB,
        free_bytes=Disk(free),
    )


def refusal(call: Callable[[], Any]) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        call()
    return caught.value


def test_so_many_requests_are_let_in_and_no_more() -> None:
    service = admission(runs=2, max_queued=1)
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(service.place(MB))

        refused = refusal(lambda: stack.enter_context(service.place(MB)))

        assert (refused.error_type, refused.retryable) == ("queue_full", True)
        assert refused.data["retry_after"] >= 1
    assert service.is_idle
    with service.place(MB):
        assert service.admitted == 1


def test_room_is_promised_by_the_size_that_is_declared() -> None:
    service = admission(free=GB)
    with service.place(700 * MB):
        refused = refusal(service.place(400 * MB).__enter__)

        with service.place(300 * MB):
            pass

    assert refused.error_type == "queue_full"
    with service.place(400 * MB):
        pass


def test_what_has_arrived_is_not_counted_twice() -> None:
    disk = Disk(GB)
    service = Admission(Limits(2, GB), max_queued=2, run_memory_bytes=GB, free_bytes=disk)
    with service.place(700 * MB) as place:
        service.receive(place, 700 * MB)
        disk.free -= 700 * MB

        with service.place(300 * MB):
            pass


def test_body_that_the_disk_could_never_hold_is_another_matter() -> None:
    service = admission(free=GB)

    refused = refusal(service.place(2 * GB).__enter__)

    assert (refused.error_type, refused.retryable) == ("no_space", True)
    assert "retry_after" not in refused.data


def test_body_without_a_size_holds_room_as_it_grows_and_is_cut_where_there_is_none() -> None:
    service = admission(runs=2, free=3 * GROWTH_BYTES)
    with service.place(None) as place:
        service.receive(place, 1)
        assert place.reserved == GROWTH_BYTES + 1
        service.receive(place, GROWTH_BYTES)
        assert place.reserved == GROWTH_BYTES + 1

        with service.place(2 * GROWTH_BYTES + 2):
            refused = refusal(lambda: service.receive(place, GROWTH_BYTES + 2))

    assert refused.error_type == "queue_full"


def test_large_bodies_leave_places_and_room_for_small_ones() -> None:
    service = admission(runs=2, max_queued=2, free=100 * GB)
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(service.place(2 * GB))

        refused = refusal(service.place(2 * GB).__enter__)
        unsized = refusal(service.place(None).__enter__)

        assert refused.error_type == unsized.error_type == "queue_full"
        with service.place(MB):
            pass

    service = admission(free=20 * GB)
    with service.place(18 * GB):
        assert refusal(service.place(2 * GB).__enter__).error_type == "queue_full"
        with service.place(500 * MB):
            pass


def test_large_body_fits_on_a_disk_that_is_little_larger() -> None:
    with admission(free=4 * GB).place(3 * GB):
        pass


def test_large_body_that_found_no_room_is_kept_room_for() -> None:
    service = admission(runs=4, free=20 * GB)
    first, second = service.place(8 * GB), service.place(8 * GB)
    first.__enter__()
    second.__enter__()

    assert refusal(service.place(15 * GB).__enter__).error_type == "queue_full"
    first.__exit__(None, None, None)
    # It would fit, and would be in the way of the one that was there before.
    assert refusal(service.place(8 * GB + 1).__enter__).error_type == "queue_full"
    with service.place(100 * MB):
        pass
    second.__exit__(None, None, None)

    with service.place(15 * GB):
        pass
    with service.place(8 * GB + 1):
        pass


def test_service_that_stops_lets_nobody_in() -> None:
    service = admission()
    service.stop()

    refused = refusal(service.place(MB).__enter__)

    assert (refused.error_type, refused.retryable) == ("stopping", True)


def run(story: Callable[[], Awaitable[None]]) -> None:
    async def with_timeout() -> None:
        await asyncio.wait_for(story(), 10)

    asyncio.run(with_timeout())


class Visitor:
    """One run that waits for its turn and ends when it is told to."""

    def __init__(self, service: Admission, size: int = MB) -> None:
        self.is_running = False
        self._leave = asyncio.Event()
        self.task = asyncio.create_task(self._visit(service, size))

    async def _visit(self, service: Admission, size: int) -> None:
        async with service.turn(size):
            self.is_running = True
            await self._leave.wait()
        self.is_running = False

    async def end(self) -> None:
        self._leave.set()
        await self.task
        await settle()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_run_waits_until_another_has_ended() -> None:
    async def story() -> None:
        service = admission(runs=2)
        first, second, third = [Visitor(service) for _ in range(3)]
        await settle()
        assert (first.is_running, second.is_running, third.is_running) == (True, True, False)
        assert (service.running, service.waiting) == (2, 1)

        await first.end()

        assert third.is_running
        await second.end()
        await third.end()
        assert service.is_idle

    run(story)


@pytest.mark.parametrize("which", [0, 1, 2], ids=["running", "waiting first", "waiting last"])
def test_run_that_is_given_up_frees_its_place(which: int) -> None:
    async def story() -> None:
        service = admission(runs=1)
        visitors = [Visitor(service) for _ in range(3)]
        await settle()

        visitors[which].task.cancel()
        await settle()

        left = [visitor for visitor in visitors if visitor is not visitors[which]]
        assert (service.running, service.waiting) == (1, 1)
        assert left[0].is_running
        for visitor in left:
            await visitor.end()
        assert service.is_idle

    run(story)


def test_run_that_is_given_up_in_the_moment_of_its_turn_frees_its_place() -> None:
    async def story() -> None:
        service = admission(runs=1)
        first, second = Visitor(service), Visitor(service)
        await settle()

        first.task.cancel()
        second.task.cancel()
        await settle()

        assert service.is_idle

    run(story)


def test_small_run_passes_a_large_one_that_waits() -> None:
    async def story() -> None:
        service = admission(runs=2)
        first, second = Visitor(service, 20 * GB), Visitor(service, 20 * GB)
        small = Visitor(service)
        await settle()

        assert (first.is_running, second.is_running, small.is_running) == (True, False, True)
        for visitor in (small, first, second):
            await visitor.end()

    run(story)


def test_time_to_come_again_follows_the_runs_and_the_queue() -> None:
    clock = iter([0.0, 30.0, 100.0, 150.0])

    async def story() -> None:
        service = Admission(
            Limits(2, GB),
            max_queued=4,
            run_memory_bytes=GB,
            free_bytes=Disk(GB),
            clock=lambda: next(clock),
        )
        for _ in range(2):
            async with service.turn(MB):
                pass
        with ExitStack() as stack:
            for _ in range(6):
                stack.enter_context(service.place(MB))
            # Six of 40 seconds each, two at a time.
            assert service.retry_after() == 120
        assert service.retry_after() == 1

    run(story)


def test_what_is_given_up_is_told_to_come_again() -> None:
    async def story() -> None:
        service = admission()
        waiting = asyncio.create_task(service.given_up())
        await settle()
        assert not waiting.done()

        service.end()

        with pytest.raises(ServiceError) as caught:
            await waiting
        assert (caught.value.error_type, caught.value.retryable) == ("stopping", True)

    run(story)

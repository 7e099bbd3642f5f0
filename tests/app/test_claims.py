from __future__ import annotations

from app.claims import Claims

GB = 2**30


def test_other_large_ones_leave_the_room_and_small_ones_need_not() -> None:
    claims = Claims(lambda: 0.0)

    claims.add(20 * GB, seconds=60)

    assert claims.of_others(10 * GB) == 20 * GB
    assert claims.of_others(GB - 1) == 0
    assert claims.of_others(20 * GB) == 0


def test_claim_ends_when_its_upload_comes_or_does_not_come_in_time() -> None:
    now = [0.0]
    claims = Claims(lambda: now[0])
    claims.add(20 * GB, seconds=60)
    now[0] = 60.0
    assert claims.of_others(10 * GB) == 0

    claims.add(20 * GB, seconds=60)
    claims.settle(10 * GB)
    assert claims.of_others(10 * GB) == 20 * GB
    claims.settle(20 * GB)
    assert claims.of_others(10 * GB) == 0


def test_first_one_keeps_its_claim_and_can_renew_it() -> None:
    now = [0.0]
    claims = Claims(lambda: now[0])
    claims.add(20 * GB, seconds=60)

    claims.add(30 * GB, seconds=60)
    now[0] = 50.0
    claims.add(20 * GB, seconds=60)
    now[0] = 100.0

    assert claims.of_others(30 * GB) == 20 * GB


def test_small_ones_have_no_claim() -> None:
    claims = Claims(lambda: 0.0)

    claims.add(GB - 1, seconds=60)

    assert claims.of_others(10 * GB) == 0

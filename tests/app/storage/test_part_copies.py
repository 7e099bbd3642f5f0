"""The parts of an object: none too small or too large, all bytes in their order, and no more sent than must be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.responses import Extent
from app.storage.locations import Location
from app.storage.part_copies import (
    MAX_COPY_BYTES,
    MAX_UPLOAD_BYTES,
    MIN_PART_BYTES,
    AnyExtent,
    NoPartCopies,
    Part,
    plan_parts,
)
from app.storage.part_fetching import RemoteObject, RemoteRange

MIB = 2**20
SOURCE = RemoteObject(Location("s3", "bucket", "key"), '"tag"', 2**50)
NEW = 3


def new(count: int, offset: int = 0) -> Extent:
    return Extent(NEW, offset, count)


def old(count: int, offset: int = 0) -> RemoteRange:
    return RemoteRange(SOURCE, offset, count)


def sent(parts: list[Part]) -> int:
    return sum(part.count for part in parts if part.copied is None)


extents = st.lists(
    st.builds(
        lambda make, size, offset: make(size, offset),
        st.sampled_from([new, old]),
        st.sampled_from(
            [1, 1000, MIB, 5 * MIB - 1, 5 * MIB, 5 * MIB + 1, 9 * MIB, 70 * MIB, 2**33]
        ),
        st.integers(0, 2**40),
    ),
    min_size=1,
    max_size=12,
)


@given(extents)
def test_parts_are_the_bytes_in_their_order_and_of_sizes_that_a_store_takes(
    given_extents: list[AnyExtent],
) -> None:
    parts = plan_parts(given_extents)

    assert joined(e for part in parts for e in ([part.copied] if part.copied else part.sent)) == (
        joined(given_extents)
    )
    for part in parts:
        assert part.count <= (MAX_COPY_BYTES if part.copied else MAX_UPLOAD_BYTES)
    assert all(part.count >= MIN_PART_BYTES for part in parts[:-1])


def joined(each: object) -> list[tuple[object, int, int]]:
    """Extents as runs: where they come from, where that begins and ends."""
    runs: list[tuple[object, int, int]] = []
    for extent in each:  # type: ignore[attr-defined]
        origin = "old" if isinstance(extent, RemoteRange) else "new"
        start, end = extent.offset, extent.offset + extent.count
        if runs and runs[-1][0] == origin and runs[-1][2] == start:
            runs[-1] = (origin, runs[-1][1], end)
        else:
            runs.append((origin, start, end))
    return runs


def test_renamed_file_sends_its_first_part_and_its_end() -> None:
    parts = plan_parts([new(100_000), old(10**9), new(30_000)])

    assert [part.copied is not None for part in parts] == [False, True, False]
    assert [part.count for part in parts] == [
        MIN_PART_BYTES,
        10**9 + 100_000 - MIN_PART_BYTES,
        30_000,
    ]


def test_untouched_file_is_copied_alone() -> None:
    assert plan_parts([old(10**9)]) == [Part(old(10**9))]


def test_tensor_in_the_middle_is_filled_up_with_what_comes_after_it() -> None:
    parts = plan_parts([new(10), old(10**9), new(MIB), old(10**9)])

    assert sent(parts) == 2 * MIN_PART_BYTES


def test_range_that_is_too_short_for_a_part_is_sent() -> None:
    parts = plan_parts([new(10), old(6 * MIB), new(10)])

    assert [part.copied for part in parts] == [None]


def test_range_of_more_than_a_copy_takes_is_several_of_one_length() -> None:
    parts = plan_parts([old(11 * 2**30)])

    assert len(parts) == 3
    assert max(part.count for part in parts) - min(part.count for part in parts) <= 1


def test_more_parts_than_a_store_takes_are_not_planned() -> None:
    with pytest.raises(NoPartCopies):
        plan_parts(
            [piece for _ in range(5001) for piece in (new(MIN_PART_BYTES), old(MIN_PART_BYTES))]
        )

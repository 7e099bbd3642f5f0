from __future__ import annotations

import os

from app.linux import total_memory_bytes


def test_memory_is_no_more_than_that_of_the_machine() -> None:
    of_machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    assert 0 < total_memory_bytes() <= of_machine

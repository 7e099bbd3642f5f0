from __future__ import annotations

import os
import threading

from app.warm_up import migrate_something


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_nothing_is_left_of_the_warm_up() -> None:
    before = open_descriptors(), threading.active_count()

    migrate_something()

    assert (open_descriptors(), threading.active_count()) == before

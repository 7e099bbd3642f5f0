from __future__ import annotations

import subprocess
import sys


def test_nothing_is_left_of_the_warm_up() -> None:
    # In a process of its own: others' threads come and go.
    program = """
import os, time
from app.warm_up import migrate_something
migrate_something()
def left():
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
before = left()
migrate_something()
deadline = time.monotonic() + 10
while left() != before:
    assert time.monotonic() < deadline, (before, left())
    time.sleep(0.01)
"""

    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)

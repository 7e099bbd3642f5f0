from __future__ import annotations

import subprocess
import sys


def test_memory_is_what_it_was_after_it_was_gathered() -> None:
    # In a process of its own: this one's memory may be anything.
    program = """
import os
from app.huge_pages import gather_into_huge_pages
from app.watched_processes import held_bytes
held = bytearray(os.urandom(16)) * (1 << 20)
copy = bytes(held)
before = held_bytes(os.getpid())
count = gather_into_huge_pages()
after = held_bytes(os.getpid())
assert held == copy
# Pages that were never touched may come with those that were.
assert after - before <= count * (2 << 20), (before, after, count)
"""

    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)

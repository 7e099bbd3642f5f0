from __future__ import annotations

import os
import subprocess
import sys

from app.linux import total_memory_bytes


def test_memory_is_no_more_than_that_of_the_machine() -> None:
    of_machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    assert 0 < total_memory_bytes() <= of_machine


def test_a_process_is_shown_by_the_name_that_it_gives_itself() -> None:
    # In a process of its own: this one keeps its name.
    program = """
from pathlib import Path
from app.linux import call_this_process
call_this_process("migrate-waits")
assert Path("/proc/self/comm").read_text() == "migrate-waits\\n"
"""

    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)

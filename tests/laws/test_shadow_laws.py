"""What holds for every string of bytes: what passes the check neither kills nor stalls who loads it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# How many pickles each seed makes up; set it higher for a longer search.
EXAMPLES = int(os.environ.get("LAW_EXAMPLES", "150")) * 100
SECONDS = 60 + EXAMPLES // 500
SLOWEST_SECONDS = 2
PEAK_BYTES = 300 << 20


@pytest.mark.parametrize("seed", [0, 1])
def test_a_pickle_that_passes_the_check_loads_or_is_refused_in_no_time(seed: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.laws.fuzzer", str(seed), str(EXAMPLES)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )

    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["slowest"][0] < SLOWEST_SECONDS, found
    assert found["peak"] < PEAK_BYTES, found
    # Otherwise the search has nothing to find.
    assert found["loaded"] > EXAMPLES // 20, found
    assert found["refused"] > EXAMPLES // 20, found

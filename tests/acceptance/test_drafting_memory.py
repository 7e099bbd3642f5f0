"""Drafting a migration holds a tensor at a time, however large the two checkpoints are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.acceptance

MEASURED = """
import sys, threading
from pathlib import Path
import torch
from migrate_ckpt import draft_migration

def anonymous():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) * 1024

before, most, is_over = anonymous(), 0, threading.Event()

def watch():
    global most
    while not is_over.wait(0.005):
        most = max(most, anonymous())

watching = threading.Thread(target=watch)
watching.start()
draft = draft_migration(*sys.argv[1:])
is_over.set()
watching.join()
print(draft.is_proved, draft.is_complete, most - before)
"""
TENSOR_BYTES = 16 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="the memory is read from /proc")
def test_memory_does_not_grow_with_the_files(tmp_path: Path) -> None:
    side = int((TENSOR_BYTES / 4) ** 0.5)
    old, new = {}, {}
    for layer in range(8):
        q, k, out = (torch.rand(side, side) for _ in range(3))
        old |= {f"net.{layer}.q.w": q, f"net.{layer}.k.w": k, f"net.{layer}.o.w": out}
        new |= {f"layers.{layer}.qk.w": torch.cat([q, k]), f"layers.{layer}.o.w": out}
    torch.save(old, tmp_path / "old.ckpt")
    torch.save(new, tmp_path / "new.ckpt")
    del old, new

    command = [sys.executable, "-c", MEASURED, tmp_path / "old.ckpt", tmp_path / "new.ckpt"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)

    proved, complete, most = done.stdout.split()
    assert (proved, complete) == ("True", "True")
    # The largest tensor is a joined one; the files hold 403 MB each.
    assert int(most) < 2 * TENSOR_BYTES + (64 << 20)

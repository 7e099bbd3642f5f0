"""Makes the checkpoints that are measured with, and looks whether what came back is what should.

Both happen in a process of its own: the one that measures stays small, and loads no torch.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TENSORS_OF_A_LARGE_FILE = 64
NUMBERS_OF_A_SMALL_TENSOR = 16

OLD_NAME = "model.layers.{}.weight"
NEW_NAMES = {"default": "layers.{}.weight", "three_renames": "blocks.{}.kernel"}
"""What a set of migrations makes of the old name."""


def make(path: Path, kind: str, count: int) -> None:
    """Make a checkpoint of a kind of `KINDS`; the count is of bytes, tensors or entries."""
    _run("make", path, kind, count)


def check(old: Path, new: Path, set_name: str) -> None:
    """Raises CalledProcessError when the new file is not the old one with the names of the set."""
    _run("check", old, new, set_name)


def make_large(size: int) -> list[object]:
    """Tensors of float32 that hold `size` bytes together."""
    import torch

    count = size // torch.float32.itemsize // TENSORS_OF_A_LARGE_FILE
    return [torch.rand(count) for _ in range(TENSORS_OF_A_LARGE_FILE)]


def make_tensors(count: int) -> list[object]:
    """Small tensors, each with a storage of its own."""
    import torch

    return [torch.rand(NUMBERS_OF_A_SMALL_TENSOR) for _ in range(count)]


def make_entries(count: int) -> list[object]:
    """Plain values, no tensors."""
    return list(range(count))


KINDS = {"large": make_large, "tensors": make_tensors, "entries": make_entries}


def save(path: str, kind: str, count: str) -> None:
    import torch

    values = KINDS[kind](int(count))
    weights = {OLD_NAME.format(index): value for index, value in enumerate(values)}
    torch.save({"state_dict": weights, "epoch": 3}, path)


def compare(old_path: str, new_path: str, set_name: str) -> None:
    import torch

    old, new = (torch.load(path, mmap=True, weights_only=True) for path in (old_path, new_path))
    olds, news = old["state_dict"], new["state_dict"]
    names = [NEW_NAMES[set_name].format(index) for index in range(len(olds))]
    assert list(news) == names, "the names are not the new ones"
    assert old["epoch"] == new["epoch"], "what is beside the weights is not what it was"
    for value, other in zip(olds.values(), news.values(), strict=True):
        is_same = torch.equal(value, other) if torch.is_tensor(value) else value == other
        assert is_same, "a value is not what it was"


def _run(*arguments: object) -> None:
    subprocess.run([sys.executable, __file__, *map(str, arguments)], check=True)


if __name__ == "__main__":
    {"make": save, "check": compare}[sys.argv[1]](*sys.argv[2:])

"""What is not done to sharded checkpoints is refused, and not done to their shards one by one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from migrate_ckpt import UnwritableCheckpoint, repair_file, revert_file
from migrate_ckpt.history_files import stamp_file


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"w": torch.ones(2)}, folder / "one.safetensors")
    index = {"metadata": {}, "weight_map": {"w": "one.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("name", [".", "model.safetensors.index.json"])
@pytest.mark.parametrize(
    ("do", "done"),
    [(stamp_file, "stamped"), (repair_file, "repaired"), (revert_file, "taken back")],
)
def test_is_refused(
    model: Path, tmp_path: Path, do: Callable[..., Any], done: str, name: str
) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "0001_a.py").write_text("def handle(ckpt):\n    return ckpt\n")
    before = {path: path.read_bytes() for path in model.iterdir()}

    with pytest.raises(UnwritableCheckpoint, match=f"a sharded checkpoint cannot be {done}"):
        do(model / name, model / name, folder=tmp_path / "m")

    assert {path: path.read_bytes() for path in model.iterdir()} == before

"""Checkpoints that torch itself saved, and a folder of one migration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Save a value with torch; gives the path."""

    def save_value(value: Any, name: str = "old.ckpt", **options: Any) -> Path:
        # Here, so that the tests of what needs no torch run where there is none.
        import torch

        path = tmp_path / name
        torch.save(value, path, **options)
        return path

    return save_value

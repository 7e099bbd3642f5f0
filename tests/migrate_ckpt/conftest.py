from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

WriteFolder = Callable[..., Path]


@pytest.fixture
def write_folder(tmp_path: Path) -> WriteFolder:
    """Return a function that writes a folder: `write_folder({"1_x.py": text}, name="other")`."""

    def write(files: dict[str, str], name: str = "migrations") -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
        return folder

    return write

from __future__ import annotations

import os
from pathlib import Path

from app.scratch import remove_tree


def test_tree_of_any_depth_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    home = os.getcwd()
    try:
        os.chdir(folder)
        for _ in range(3000):
            Path("a file").touch()
            os.mkdir("below")
            os.chdir("below")
    finally:
        os.chdir(home)

    remove_tree(folder)

    assert list(tmp_path.iterdir()) == []


def test_closed_folder_is_removed(tmp_path: Path) -> None:
    (tmp_path / "run" / "closed" / "below").mkdir(parents=True)
    (tmp_path / "run" / "closed").chmod(0)
    (tmp_path / "run").chmod(0)

    remove_tree(tmp_path / "run")

    assert list(tmp_path.iterdir()) == []


def test_link_is_removed_and_what_it_leads_to_is_not(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "link").symlink_to(outside)

    remove_tree(tmp_path / "run")

    assert list(tmp_path.iterdir()) == [outside]

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from app.instance import instance_folder, remove_abandoned


def test_folder_is_there_for_as_long_as_it_is_needed(tmp_path: Path) -> None:
    with instance_folder(tmp_path) as folder:
        (folder / "run-1").mkdir()
        assert folder.parent == tmp_path

    assert list(tmp_path.iterdir()) == []


def test_living_instances_leave_each_other_alone(tmp_path: Path) -> None:
    with instance_folder(tmp_path) as first, instance_folder(tmp_path) as second:
        remove_abandoned(tmp_path)

        assert first.is_dir()
        assert second.is_dir()


def test_folder_of_a_killed_instance_is_removed_by_the_next(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, time; from app.instance import instance_folder\n"
        "with instance_folder(pathlib.Path(sys.argv[1])) as folder:\n"
        "    (folder / 'upload').write_text('x'); print(folder, flush=True); time.sleep(60)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert other.stdout is not None
    with other, other.stdout:
        left = Path(other.stdout.readline().strip())
        os.kill(other.pid, signal.SIGKILL)
    assert (left / "upload").exists()

    with instance_folder(tmp_path) as own:
        assert list(tmp_path.iterdir()) == [own]


def test_what_is_not_of_an_instance_is_left_alone(tmp_path: Path) -> None:
    for name in ("migrate-ckpt-main", "something"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")

    with instance_folder(tmp_path):
        pass

    assert sorted(path.name for path in tmp_path.iterdir()) == ["migrate-ckpt-main", "something"]

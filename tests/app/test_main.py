from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run_python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_import_reads_no_settings_and_loads_no_torch(tmp_path: Path) -> None:
    # There is no folder of migrations here: reading the settings would fail.
    code = "import sys, app.main; print(sorted({'torch', 'numpy'} & set(sys.modules)))"

    done = run_python(code, tmp_path)

    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_application_is_made_when_it_is_asked_for_and_only_once(tmp_path: Path) -> None:
    (tmp_path / "migrations").mkdir()
    code = "import app.main as m; a = m.app; print(type(a).__name__, a is m.app)"

    done = run_python(code, tmp_path)

    assert done.stdout == "FastAPI True\n", done.stderr


def test_other_names_are_not_there() -> None:
    import app.main

    with pytest.raises(AttributeError, match="application"):
        app.main.application  # noqa: B018

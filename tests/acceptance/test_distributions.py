"""What is published: the wheel that the sdist gives has all that is needed, and works where nothing else is."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import httpx
import pytest

import migrate_ckpt
from tests.acceptance.conftest import eventually, free_port

pytestmark = pytest.mark.acceptance
ROOT = Path(__file__).resolve().parent.parent.parent

USER = """
from pathlib import Path
from migrate_ckpt import CkptType, Report, migrate_file
from migrate_ckpt.operations import Operation, rename

operations: list[Operation] = [rename("a", "b")]

def migrated(path: Path) -> Report:
    return migrate_file(path, path, folder="migrations")

def handle(ckpt: CkptType) -> CkptType:
    return operations[0](ckpt)
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    # Nothing of the clone, nor of the environment that the tests run in.
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, env={**kept, **environment}
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist of this clone, and the wheel that is built from that."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    [found] = dist.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def empty(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that has the wheel and what that asks for."""
    folder = tmp_path_factory.mktemp("empty")
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    programs = folder / "venv" / "bin"
    constraints = ROOT / "constraints.txt"
    run(programs / "pip", "install", "--quiet", "--constraint", constraints, wheel, cwd=folder)
    return programs


def test_sdist_has_what_the_wheel_is_built_of_and_no_more(dist: Path) -> None:
    [path] = dist.glob("*.tar.gz")
    with tarfile.open(path) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}

    assert {"pyproject.toml", "README.md", "LICENSE", "app/page/index.html"} <= names
    tops = {name.partition("/")[0] for name in names}
    assert not tops & {".venv", "data", ".ci", "benchmarks"}


def test_wheel_has_both_packages_and_the_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())

    pages = {f"app/page/{path.name}" for path in (ROOT / "app" / "page").iterdir()}
    assert {"migrate_ckpt/py.typed", "migrate_ckpt/__init__.py", "app/__main__.py"} <= names
    assert pages <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"app", "migrate_ckpt"}
    assert wheel.name.startswith(f"migrate_ckpt-{migrate_ckpt.__version__}-")


def test_command_and_library_work_where_nothing_else_is(empty: Path, tmp_path: Path) -> None:
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations" / "0001_x.py").write_text(
        "from migrate_ckpt.operations import rename\noperations = [rename('a', 'b')]\n"
    )
    make = "import torch; torch.save({'state_dict': {'a': torch.ones(2)}}, 'old.ckpt')"
    run(empty / "python", "-c", make, cwd=tmp_path)

    said = run(empty / "migrate-ckpt", "run", "old.ckpt", "-o", "new.ckpt", cwd=tmp_path)

    assert "1 migration ran" in said
    load = "import torch; print(list(torch.load('new.ckpt', weights_only=True)['state_dict']))"
    assert run(empty / "python", "-c", load, cwd=tmp_path) == "['b']\n"
    version = run(empty / "migrate-ckpt", "--version", cwd=tmp_path)
    assert version == f"migrate-ckpt {migrate_ckpt.__version__}\n"


def test_service_works_where_nothing_else_is(empty: Path, tmp_path: Path) -> None:
    (tmp_path / "migrations").mkdir()
    port = free_port()
    environment = {
        **{k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        "PORT": str(port),
        "MIGRATE_CKPT_MIGRATIONS_FOLDER": str(tmp_path / "migrations"),
        "MIGRATE_CKPT_SCRATCH_FOLDER": str(tmp_path),
    }
    command = [empty / "python", "-m", "app", "serve"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            assert eventually(lambda: _answers(port, "/readyz"), seconds=60)
            assert _answers(port, "/")
            assert _answers(port, "/page/page.js")
            assert _answers(port, "/docs")
        finally:
            process.terminate()


def test_users_of_the_library_are_type_checked_strictly(empty: Path, tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "user.py").write_text(USER)
    mypy = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(empty / "python")]

    assert "no issues found" in run(*mypy, "user.py", cwd=tmp_path)
    (tmp_path / "user.py").write_text(USER.replace("-> Report", "-> int"))
    with pytest.raises(AssertionError, match="Incompatible return value"):
        run(*mypy, "user.py", cwd=tmp_path)


def _answers(port: int, path: str) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}{path}").status_code == 200
    except httpx.TransportError:
        return False

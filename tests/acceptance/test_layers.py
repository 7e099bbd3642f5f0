"""The sandbox without root, and where the kernel refuses what it refuses in a container."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import torch

from tests.acceptance.conftest import Service, running_service, write_sets

pytestmark = pytest.mark.acceptance

# What comes before the command of a service: it changes the process, and becomes the command.
AS_A_USER = """
import os, sys
from app.confinement import code_paths
from app.privileges import become
from app.reach import open_way

open_way(12345, [*code_paths(), sys.argv[1]])
become(12345)
os.execv(sys.argv[2], sys.argv[2:])
"""
# Docker's usual profile lets no namespaces be made; older kernels have no Landlock.
WITHOUT = """
import os, sys
from app import system_calls
from app.linux import gain_no_privileges, prctl

calls = {"landlock": (444, 444), "namespaces": (272, 97), "users": (117, 147)}
system_calls._REFUSED = {name: calls[name] for name in sys.argv[1].split(",")}
gain_no_privileges()
system_calls._SOCKETPAIR = system_calls._PRCTL = system_calls._CLONE = (9999, 9999)
system_calls.restrict_system_calls(system_calls.architecture())
os.execv(sys.argv[2], sys.argv[2:])
"""


def layers(service: Service) -> dict[str, str]:
    found: dict[str, str] = httpx.get(f"{service.url}/readyz?verbose").json()["layers"]
    return found


def assert_migrates(service: Service, old: Path) -> None:
    url = f"{service.url}/migrate?set=writes-in-place"
    answer = httpx.post(url, content=old.read_bytes(), timeout=60)

    assert answer.status_code == 200, answer.text
    after = torch.load(io.BytesIO(answer.content), weights_only=True)["state_dict"]
    before = torch.load(old, weights_only=True)["state_dict"]
    assert torch.equal(after["model.layer0.weight"], before["model.layer0.weight"] + 1)


def test_service_that_is_not_root_has_every_layer(tmp_path: Path, old: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can start a service as another user; the other tests ran without")
    write_sets(tmp_path / "migrations")
    tmp_path.chmod(0o755)
    (tmp_path / "scratch").mkdir()
    os.chown(tmp_path / "scratch", 12345, 12345)
    prefix = [sys.executable, "-c", AS_A_USER, str(tmp_path)]

    with running_service(tmp_path, prefix=prefix) as service:
        found = layers(service)
        assert_migrates(service, old)

    if found["network"] != "in force: no sockets and a network namespace":
        pytest.skip(f"users have no namespaces here: {found['network']}")
    assert found["user"] == "in force: uid 12345"
    assert {what.partition(":")[0] for what in found.values()} == {"in force"}


@pytest.mark.parametrize(
    ("lacking", "missing", "means"),
    [
        ("namespaces", [], ("network", "in force: no sockets; ")),
        ("landlock", ["files"], ("processes", "in force: a process namespace")),
        ("landlock,namespaces", ["files"], ("processes", "in force: a filter for signals")),
        ("users", ["user"], ("files", "in force")),
    ],
    ids=["no namespaces", "no Landlock", "neither", "no other user"],
)
def test_service_goes_on_without_what_the_machine_lacks_and_says_so(
    tmp_path: Path, old: Path, lacking: str, missing: list[str], means: tuple[str, str]
) -> None:
    if os.geteuid() != 0:
        pytest.skip("the layers that root has are not those of this user")
    write_sets(tmp_path / "migrations")

    prefix = [sys.executable, "-c", WITHOUT, lacking]
    with running_service(tmp_path, prefix=prefix) as service:
        found = layers(service)
        assert_migrates(service, old)

    # Without namespaces no way is opened to an interpreter below a folder of root's.
    expected = {*missing, *(["user"] if found["user"].startswith("not available") else [])}
    assert {name for name, what in found.items() if not what.startswith("in force")} == expected
    assert found[means[0]].startswith(means[1])
    for name in expected:
        assert f"The sandbox lacks a layer: {name} (not available: " in service.log.read_text()


def test_service_that_requires_what_the_machine_lacks_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "0001_first.py").write_text("def handle(ckpt):\n    return ckpt\n")

    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, "landlock", sys.executable, "-m", "app", "serve"],
        env={
            **os.environ,
            "MIGRATE_CKPT_MIGRATIONS_FOLDER": str(tmp_path),
            "MIGRATE_CKPT_SCRATCH_FOLDER": str(tmp_path),
            "MIGRATE_CKPT_SANDBOX": "required",
            "PORT": "0",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "MIGRATE_CKPT_SANDBOX=required cannot be met here: The sandbox lacks files"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["0001_first.py"]


def test_service_that_requires_what_there_is_starts(tmp_path: Path, old: Path) -> None:
    write_sets(tmp_path / "migrations")

    with running_service(tmp_path) as service:
        lacking = {
            n: what for n, what in layers(service).items() if not what.startswith("in force")
        }
    if lacking:
        pytest.skip(f"this machine lacks layers: {lacking}")
    (tmp_path / "again").mkdir()
    write_sets(tmp_path / "again" / "migrations")
    with running_service(tmp_path / "again", MIGRATE_CKPT_SANDBOX="required") as service:
        assert_migrates(service, old)

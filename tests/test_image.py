"""The container image without an engine: what its two files say, and that what they call works."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import pytest
import torch
import yaml

from app.settings import Settings

REPOSITORY = Path(__file__).resolve().parent.parent
UNKNOWN_USER = "54321"

# What the engine does for `read_only`, `tmpfs` and `user`, done by hand: mounts of its own, the
# root read-only but for the folder $1, and a user id that no passwd file knows.
AS_IN_A_CONTAINER = f"""
set -e
mount --make-rprivate /
mount -o remount,bind,ro /
mount -t tmpfs -o mode=1777 tmpfs "$1"
shift
exec unshare --user --map-user={UNKNOWN_USER} --map-group={UNKNOWN_USER} -- "$@"
"""
NAMESPACES = ["unshare", "--user", "--map-root-user", "--mount"]


@dataclass
class Image:
    """What the last stage of the Dockerfile says."""

    environment: dict[str, str] = field(default_factory=dict)
    entry_point: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health_check: list[str] = field(default_factory=list)
    user: str = ""
    workdir: str = ""


@pytest.fixture(scope="module")
def image() -> Image:
    image = Image()
    for keyword, rest in last_stage(instructions()):
        if keyword == "ENV":
            image.environment |= dict(pair.split("=", 1) for pair in rest.split())
        elif keyword == "ENTRYPOINT":
            image.entry_point = json.loads(rest)
        elif keyword == "CMD":
            image.command = json.loads(rest)
        elif keyword == "HEALTHCHECK":
            image.health_check = json.loads(rest.partition(" CMD ")[2])
        elif keyword in ("USER", "WORKDIR"):
            setattr(image, keyword.lower(), rest)
    return image


@pytest.fixture(scope="module")
def services() -> dict[str, dict]:
    """Every service of the compose file, by its name."""
    return yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())["services"]


@pytest.fixture(scope="module", params=["migrate-ckpt", "web", "worker"])
def container(request: pytest.FixtureRequest, services: dict[str, dict]) -> dict:
    """One of those that run our image."""
    return services[request.param]


@pytest.fixture(scope="module")
def compose(services: dict[str, dict]) -> dict:
    """The one that `docker compose up` starts."""
    (name,) = (name for name, each in services.items() if "profiles" not in each)
    return services[name]


def instructions() -> list[tuple[str, str]]:
    lines = (REPOSITORY / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#"))
    text = re.sub(r"\\\n\s*", "", text)
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line]


def last_stage(steps: list[tuple[str, str]]) -> list[tuple[str, str]]:
    start = max(number for number, (keyword, _) in enumerate(steps) if keyword == "FROM")
    return steps[start:]


def test_everything_that_is_copied_exists_and_is_not_ignored() -> None:
    allowed = {
        line.removeprefix("!")
        for line in (REPOSITORY / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }

    copies = [rest.split() for keyword, rest in instructions() if keyword == "COPY"]
    sources = {name for parts in copies if "--from=build" not in parts for name in parts[:-1]}

    assert sources == allowed
    assert all((REPOSITORY / name).exists() for name in sources)


def test_image_runs_as_a_numeric_user_that_is_not_root(image: Image) -> None:
    user, _, group = image.user.partition(":")

    assert int(user) > 0
    assert int(group) > 0


def test_image_names_only_settings_that_there_are(image: Image, container: dict) -> None:
    named = {
        name
        for name in [*image.environment, *container["environment"]]
        if name.startswith("MIGRATE")
    }

    assert named <= {f"MIGRATE_CKPT_{name.upper()}" for name in Settings.model_fields}


def test_what_is_written_lands_on_what_can_be_written_to(image: Image, compose: dict) -> None:
    (mount,) = (PurePosixPath(entry.partition(":")[0]) for entry in compose["tmpfs"])

    scratch = PurePosixPath(image.environment["MIGRATE_CKPT_SCRATCH_FOLDER"])
    home = PurePosixPath(image.environment["HOME"])
    (volume,) = (entry for entry in compose["volumes"] if not entry.startswith("."))

    assert compose["read_only"] is True
    assert scratch.is_relative_to(mount)
    assert home.is_relative_to(mount)
    assert volume == f"data:{image.environment['MIGRATE_CKPT_DATA_FOLDER']}"


def test_migrations_are_mounted_read_only_where_the_service_looks(
    image: Image, container: dict
) -> None:
    source, target, mode = container["volumes"][0].split(":")

    assert (REPOSITORY / source).is_dir()
    assert target == image.environment["MIGRATE_CKPT_MIGRATIONS_FOLDER"]
    assert mode == "ro"


def test_service_for_everybody_is_published_on_loopback_only(image: Image, compose: dict) -> None:
    assert compose["environment"]["MIGRATE_CKPT_ALLOW_ANONYMOUS"] == "true"
    assert compose["ports"] == [f"127.0.0.1:8000:{image.environment['PORT']}"]


def test_container_can_gain_no_rights(container: dict) -> None:
    assert container["cap_drop"] == ["ALL"]
    assert container["read_only"] is True
    assert "no-new-privileges:true" in container["security_opt"]
    assert "privileged" not in container


def test_containers_of_the_cluster_fit_each_other(services: dict[str, dict]) -> None:
    web, worker, database = services["web"], services["worker"], services["postgres"]

    # The ports of the servers are open to no one else.
    assert {name for name, each in services.items() if "ports" in each} == {"migrate-ckpt", "web"}
    assert all(port.startswith("127.0.0.1:") for port in web["ports"])
    assert worker["command"] == ["worker"]
    assert worker["environment"] == web["environment"]
    url = urlsplit(web["environment"]["MIGRATE_CKPT_DATABASE_URL"])
    # What stands in for the variable has a colon in it, which is none of the URL's.
    assert url.netloc.endswith("@postgres:5432")
    assert database["environment"]["POSTGRES_PASSWORD"] in url.netloc
    assert url.netloc.startswith(database["environment"]["POSTGRES_USER"] + ":")
    assert url.path == f"/{database['environment']['POSTGRES_USER']}"
    bucket = urlsplit(web["environment"]["MIGRATE_CKPT_RESULTS_URL"]).netloc
    assert f"-bucket={bucket}" in services["s3"]["command"]
    assert "-master.telemetry=false" in services["s3"]["command"]
    keys = set(services["s3"]["environment"])
    assert {name: web["environment"][name] for name in keys} == services["s3"]["environment"]
    assert set(web["depends_on"]) == {"postgres", "s3"}


@pytest.mark.acceptance
def test_health_check_fails_where_nothing_listens(image: Image) -> None:
    environment = as_image(image, free_port())

    done = subprocess.run(image.health_check, env=environment, cwd="/", capture_output=True)

    assert done.returncode == 1
    assert b"refused" in done.stderr


@pytest.mark.acceptance
def test_image_serves_as_an_unknown_user_on_a_read_only_root(
    image: Image, contained_service: dict[str, str], tmp_path: Path
) -> None:
    address = f"http://127.0.0.1:{contained_service['PORT']}"
    torch.save({"state_dict": {"model.weight": torch.ones(3)}}, tmp_path / "old.ckpt")
    request = urllib.request.Request(
        f"{address}/migrate",
        data=(tmp_path / "old.ckpt").read_bytes(),
        headers={"Content-Type": "application/octet-stream"},
    )

    health = subprocess.run(image.health_check, env=contained_service, cwd="/")
    with urllib.request.urlopen(request) as answer:
        (tmp_path / "new.ckpt").write_bytes(answer.read())

    assert health.returncode == 0
    migrated = torch.load(tmp_path / "new.ckpt", weights_only=True)
    assert list(migrated["state_dict"]) == ["weight"]


@pytest.fixture
def contained_service(image: Image, compose: dict, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a service that runs as in a container, on this machine's network."""
    writable = tmp_path / "writable"
    writable.mkdir()
    if shutil.which("unshare") is None:
        pytest.skip("the command unshare is not here")
    if subprocess.run(contained(writable, "true"), capture_output=True).returncode != 0:
        pytest.skip("the kernel allows no user and mount namespaces here")
    environment = as_image(image, free_port()) | compose["environment"]
    # This machine's /tmp may hold this very repository: another folder stands in for it.
    environment |= dict.fromkeys(("HOME", "TMPDIR", "MIGRATE_CKPT_SCRATCH_FOLDER"), str(writable))
    environment["MIGRATE_CKPT_DATA_FOLDER"] = str(writable / "data")
    command = contained(writable, *image.entry_point, *image.command)
    log_path = tmp_path / "service.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, cwd="/", stdout=log, stderr=subprocess.STDOUT
        )
    try:
        wait_until_healthy(process, image.health_check, environment, log_path)
        yield environment
    finally:
        process.terminate()
        process.wait(timeout=30)


def contained(writable: Path, *command: str) -> list[str]:
    return [*NAMESPACES, "sh", "-c", AS_IN_A_CONTAINER, "sh", str(writable), *command]


def as_image(image: Image, port: int) -> dict[str, str]:
    """Its environment, with this machine's paths, a free port, and loopback only."""
    return image.environment | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "MIGRATE_CKPT_MIGRATIONS_FOLDER": str(REPOSITORY / "migrations"),
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_healthy(
    process: subprocess.Popen[bytes],
    health_check: list[str],
    environment: dict[str, str],
    log_path: Path,
) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        probe = subprocess.run(health_check, env=environment, cwd="/", capture_output=True)
        if probe.returncode == 0:
            return
        time.sleep(0.2)
    pytest.fail(f"the service did not start:\n{log_path.read_text()}")

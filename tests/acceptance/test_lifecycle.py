"""Starting, stopping, and changing the migrations of a service that runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.acceptance.conftest import Service, eventually, is_alive, running_service, write_sets

pytestmark = pytest.mark.acceptance

SLOW = """
import time

def handle(ckpt):
    open("begun", "wb").close()
    time.sleep(8)
    ckpt["first"] = True
    return ckpt
"""
BROKEN = "def handle(ckpt:\n"
SECOND = "def handle(ckpt):\n    return ckpt\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_sets(tmp_path / "migrations")
    (tmp_path / "migrations" / "slow").mkdir()
    (tmp_path / "migrations" / "slow" / "0001_first.py").write_text(SLOW)
    return tmp_path


def begin(service: Service, old: Path, set_name: str) -> Future[httpx.Response]:
    """Send a checkpoint from another thread, and come back when its migration has begun."""
    before = service.begun_sleeps()
    url = f"{service.url}/migrate?set={set_name}"
    future = ThreadPoolExecutor(1).submit(httpx.post, url, content=old.read_bytes(), timeout=60)
    assert eventually(lambda: service.begun_sleeps() - before)
    return future


def checks(service: Service) -> dict[str, str]:
    found: dict[str, str] = httpx.get(f"{service.url}/readyz?verbose").json()["checks"]
    return found


def ran(answer: httpx.Response) -> list[str]:
    names: list[str] = json.loads(answer.headers["migration-report"])["ran"]
    return names


def test_service_told_to_stop_says_no_at_once_and_ends_what_has_begun(
    folder: Path, old: Path
) -> None:
    with running_service(folder) as service:
        under_way = begin(service, old, "slow")

        service.process.send_signal(signal.SIGTERM)

        assert eventually(lambda: httpx.get(f"{service.url}/readyz").status_code == 503, seconds=5)
        assert httpx.get(f"{service.url}/livez").status_code == 200
        refused = httpx.post(f"{service.url}/migrate", content=old.read_bytes())
        assert (refused.status_code, refused.json()["error_type"]) == (503, "stopping")
        assert refused.json()["retryable"] is True
        assert int(refused.headers["retry-after"]) >= 1
        assert under_way.result().status_code == 200
        assert service.process.wait(30) == 0
    assert list(service.scratch.iterdir()) == []


@pytest.mark.parametrize("again", [False, True], ids=["time is over", "told again"])
def test_what_has_not_ended_in_time_is_killed_and_said_to_be(
    folder: Path, old: Path, again: bool
) -> None:
    grace = "60" if again else "1"
    with running_service(folder, MIGRATE_CKPT_SHUTDOWN_GRACE_SECONDS=grace) as service:
        under_way = begin(service, old, "sleeps")
        (run,) = service.runs()

        service.process.send_signal(signal.SIGTERM)
        if again:
            time.sleep(0.5)
            service.process.send_signal(signal.SIGTERM)

        answer = under_way.result(20)
        assert (answer.status_code, answer.json()["error_type"]) == (503, "stopping")
        assert (answer.json()["retryable"], answer.json()["migration"]) == (True, "0001_first")
        assert service.process.wait(30) == 0
        assert not is_alive(run)
    assert list(service.scratch.iterdir()) == []


def test_start_cleans_up_after_a_killed_instance_and_leaves_a_living_one_alone(
    folder: Path, old: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with running_service(folder) as killed:
        begin(killed, old, "sleeps")
        killed.process.kill()
        killed.process.wait()
        (left,) = killed.scratch.iterdir()
        shared = killed.scratch

    with running_service(
        tmp_path_factory.mktemp("living"),
        MIGRATE_CKPT_MIGRATIONS_FOLDER=str(folder / "migrations"),
        MIGRATE_CKPT_SCRATCH_FOLDER=str(shared),
    ) as living:
        assert not left.exists()
        under_way = begin(living, old, "slow")
        (own,) = shared.iterdir()
        with running_service(
            tmp_path_factory.mktemp("next"),
            MIGRATE_CKPT_MIGRATIONS_FOLDER=str(folder / "migrations"),
            MIGRATE_CKPT_SCRATCH_FOLDER=str(shared),
        ):
            assert own.exists()
            assert len(list(shared.iterdir())) == 2
        assert under_way.result().status_code == 200


def test_changed_migrations_are_taken_up_while_a_run_keeps_those_it_began_with(
    folder: Path, old: Path
) -> None:
    slow = folder / "migrations" / "slow"
    with running_service(folder) as service:
        under_way = begin(service, old, "slow")

        shutil.rmtree(slow)
        slow.mkdir()
        (slow / "0001_changed.py").write_text(SECOND)
        (slow / "0002_second.py").write_text(SECOND)

        def names() -> list[str]:
            answer = httpx.get(f"{service.url}/migrations/slow").json()
            return [migration["name"] for migration in answer["migrations"]]

        assert eventually(lambda: names() == ["0001_changed", "0002_second"], seconds=30)
        assert ran(under_way.result()) == ["0001_first"]
        url = f"{service.url}/migrate?set=slow"
        answer = httpx.post(url, content=old.read_bytes(), timeout=60)
        assert ran(answer) == ["0001_changed", "0002_second"]


def test_broken_migration_leaves_the_old_ones_serving_and_is_named(folder: Path, old: Path) -> None:
    broken = folder / "migrations" / "0002_broken.py"
    with running_service(folder) as service:
        broken.write_text(BROKEN)

        assert eventually(lambda: "0002_broken" in checks(service)["migrations"], seconds=30)
        assert httpx.get(f"{service.url}/readyz").status_code == 200
        answer = httpx.post(f"{service.url}/migrate", content=old.read_bytes(), timeout=60)
        assert ran(answer) == ["0001_first"]

        broken.write_text(SECOND)
        assert eventually(lambda: checks(service)["migrations"] == "ok", seconds=30)
        answer = httpx.post(f"{service.url}/migrate", content=old.read_bytes(), timeout=60)
        assert ran(answer) == ["0001_first", "0002_broken"]


def test_mounted_config_map_is_taken_up_when_it_is_swapped(tmp_path: Path, old: Path) -> None:
    mounted = tmp_path / "migrations"
    for version in ("..1", "..2"):
        (mounted / version).mkdir(parents=True)
        (mounted / version / "0001_first.py").write_text(SECOND)
    (mounted / "..2" / "0001_first.py").write_text(f"import os\n{SECOND}")
    (mounted / "..data").symlink_to("..1")
    (mounted / "0001_first.py").symlink_to("..data/0001_first.py")
    with running_service(tmp_path) as service:

        def digest() -> str:
            found: str = httpx.get(f"{service.url}/version").json()["sets"]["default"]
            return found

        before = digest()

        (mounted / "..data_tmp").symlink_to("..2")
        os.rename(mounted / "..data_tmp", mounted / "..data")

        assert eventually(lambda: digest() != before, seconds=30)
        answer = httpx.post(f"{service.url}/migrate", content=old.read_bytes(), timeout=60)
        assert ran(answer) == ["0001_first"]

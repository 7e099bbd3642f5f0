"""A job that was accepted is carried out: though the service is killed in the middle of it and started again."""

from __future__ import annotations

import os
import signal
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.conftest import (
    AT_ONCE_SECONDS,
    Service,
    children,
    connect,
    eventually,
    is_alive,
    running_service,
)
from tests.acceptance.test_migrate import assert_migrated

pytest.importorskip("dbos", reason="the extra [jobs] is not installed")
pytestmark = pytest.mark.acceptance

# In the middle of its run for long enough to be caught there.
WAITS = """
    import time

    def handle(ckpt):
        time.sleep(3)
        weights = ckpt["state_dict"]
        for key in list(weights):
            weights[key.removeprefix("model.")] = weights.pop(key)
        return ckpt
"""
HANGS = """
    import time

    def handle(ckpt):
        time.sleep(60)
"""
FAILS = """
    def handle(ckpt):
        raise KeyError("optimizer")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a service whose default set takes its time."""
    for name, code in (("", WAITS), ("hangs", HANGS), ("fails", FAILS)):
        (tmp_path / "migrations" / name).mkdir(exist_ok=True)
        (tmp_path / "migrations" / name / "0001_first.py").write_text(textwrap.dedent(code))
    return tmp_path


@pytest.fixture
def started(folder: Path) -> Iterator[Service]:
    with start(folder) as service:
        yield service


def start(folder: Path) -> Any:
    return running_service(
        folder,
        MIGRATE_CKPT_DATA_FOLDER=str(folder / "data"),
        MIGRATE_CKPT_MAX_CONCURRENT_RUNS="1",
    )


def kill(service: Service) -> None:
    """End the service as a power cut would, and wait until its runs have died with it."""
    fork_server = service.fork_server()
    runs = children(fork_server)
    os.kill(service.pid, signal.SIGKILL)
    service.process.wait()
    assert eventually(lambda: not any(map(is_alive, [fork_server, *runs])))


def submit(service: Service, checkpoint: Path, query: str = "", **headers: str) -> httpx.Response:
    with checkpoint.open("rb") as file:
        return httpx.post(
            f"{service.url}/jobs{query}", files={"file": ("old.ckpt", file)}, headers=headers
        )


def job(service: Service, path: str) -> dict[str, Any]:
    document: dict[str, Any] = httpx.get(f"{service.url}{path}").json()
    return document


def is_running(service: Service, path: str) -> bool:
    return bool((job(service, path)["progress"] or {}).get("migration"))


def wait_until_running(service: Service, path: str) -> None:
    assert eventually(lambda: is_running(service, path), seconds=60)


def wait_for(service: Service, path: str) -> dict[str, Any]:
    assert eventually(lambda: job(service, path)["ended"], seconds=60), job(service, path)
    return job(service, path)


def assert_result(service: Service, path: str, old: Path, target: Path) -> None:
    target.write_bytes(httpx.get(f"{service.url}{path}/result").raise_for_status().content)
    assert_migrated(target, old)


def test_jobs_survive_a_service_that_is_killed_in_the_middle(folder: Path, old: Path) -> None:
    other = folder / "other.ckpt"
    other.write_bytes(old.read_bytes())
    with start(folder) as service:
        running = submit(service, old).headers["location"]
        assert eventually(lambda: is_running(service, running))
        queued = submit(service, other, "?to=0001_first").headers["location"]
        assert job(service, queued)["queue_position"] == 1
        kill(service)

    with start(folder) as service:
        begun = time.monotonic()
        first = wait_for(service, running)
        print(f"the job that was running was done {time.monotonic() - begun:.1f} s after the start")
        second = wait_for(service, queued)

        assert (first["status"], second["status"]) == ("succeeded", "succeeded")
        assert first["report"]["ran"] == ["0001_first"]
        assert_result(service, running, old, folder / "first.ckpt")
        assert_result(service, queued, old, folder / "second.ckpt")
        # Nothing of them is left but the results.
        assert eventually(lambda: not list((folder / "data" / "jobs").iterdir()))
        assert len(list((folder / "data" / "results").iterdir())) == 2


def test_job_whose_service_dies_each_time_is_given_up(folder: Path, old: Path) -> None:
    path = ""
    for _ in range(3):
        with start(folder) as service:
            path = path or submit(service, old).headers["location"]
            wait_until_running(service, path)
            kill(service)

    with start(folder) as service:
        given_up = wait_for(service, path)

        assert given_up["status"] == "failed"
        assert given_up["problem"]["error_type"] == "given_up"
        assert given_up["problem"]["tries"] == 3
        # The next one is taken as if nothing had been.
        assert wait_for(service, submit(service, old).headers["location"])["status"] == "succeeded"


def test_file_that_a_killed_service_had_just_written_is_the_result(folder: Path, old: Path) -> None:
    quick = folder / "migrations" / "quick"
    quick.mkdir()
    (quick / "0001_first.py").write_text("def handle(ckpt):\n    return {'a': 1, **ckpt}\n")
    source, target = folder / "in" / "old.ckpt", folder / "out" / "new.ckpt"
    source.parent.mkdir()
    target.parent.mkdir()
    source.write_bytes(old.read_bytes())
    order = {"source": f"file://{source}", "destination": f"file://{target}", "set": "quick"}
    allowed = {
        "MIGRATE_CKPT_DATA_FOLDER": str(folder / "data"),
        "MIGRATE_CKPT_ALLOWED_SOURCES": f"file://{source.parent}",
        "MIGRATE_CKPT_ALLOWED_DESTINATIONS": f"file://{target.parent}",
    }
    with running_service(folder, **allowed) as service:
        answer = httpx.post(f"{service.url}/jobs", json=order)
        assert answer.status_code == 202, answer.text
        path = answer.headers["location"]
        # At once: before the job has noted that it is done.
        deadline = time.monotonic() + 60
        while not target.exists():
            assert time.monotonic() < deadline, job(service, path)
        os.kill(service.pid, signal.SIGKILL)
        service.process.wait()
    written = target.read_bytes(), target.stat().st_ino

    with running_service(folder, **allowed) as service:
        assert wait_for(service, path)["status"] == "succeeded"
        assert (target.read_bytes(), target.stat().st_ino) == written
        assert [file.name for file in target.parent.iterdir()] == ["new.ckpt"]
        # Another checkpoint is not written there.
        refused = httpx.post(f"{service.url}/jobs", json={**order, "set": "default"}).headers[
            "location"
        ]
        assert wait_for(service, refused)["problem"]["error_type"] == "destination_exists"


def test_stopped_service_goes_on_with_its_job_when_it_starts(folder: Path, old: Path) -> None:
    with running_service(
        folder,
        MIGRATE_CKPT_DATA_FOLDER=str(folder / "data"),
        MIGRATE_CKPT_SHUTDOWN_GRACE_SECONDS="0",
    ) as service:
        path = submit(service, old).headers["location"]
        assert eventually(lambda: is_running(service, path))
    assert service.process.returncode == 0

    with start(folder) as service:
        assert wait_for(service, path)["status"] == "succeeded"


def test_job_for_which_there_is_no_place_is_refused_before_its_body(
    folder: Path, old: Path
) -> None:
    body = old.read_bytes()
    length = {"Content-Length": str(len(body)), "Expect": "100-continue"}
    with running_service(
        folder,
        MIGRATE_CKPT_DATA_FOLDER=str(folder / "data"),
        MIGRATE_CKPT_ALLOWED_SOURCES=f"file://{old.parent}",
        MIGRATE_CKPT_MAX_CONCURRENT_RUNS="1",
        MIGRATE_CKPT_MAX_QUEUED_JOBS="1",
    ) as service:
        wait_until_running(service, submit(service, old).headers["location"])
        waiting = submit(service, old, **{"Idempotency-Key": "one"})
        assert waiting.status_code == 202
        metrics = httpx.get(f"{service.url}/metrics").text

        with connect(service) as connection:
            lines = [f"{name}: {value}" for name, value in {"Host": "x", **length}.items()]
            connection.sendall("\r\n".join(["POST /jobs HTTP/1.1", *lines, "", ""]).encode())
            early = connection.makefile("rb").read().decode()
        by_reference = httpx.post(f"{service.url}/jobs", json={"source": f"file://{old}"})
        again = submit(service, old, **{"Idempotency-Key": "one"})

        assert early.startswith("HTTP/1.1 503")
        assert "queue_full" in early
        assert (by_reference.status_code, by_reference.json()["error_type"]) == (503, "queue_full")
        assert int(by_reference.headers["retry-after"]) >= 1
        assert "migrate_ckpt_jobs_queued 1.0" in metrics
        # Who only asks again for what waits is not sent away.
        assert again.headers["location"] == waiting.headers["location"]
        wait_for(service, waiting.headers["location"])
        assert submit(service, old).status_code == 202


def test_cancelled_job_loses_its_run_at_once(started: Service, folder: Path, old: Path) -> None:
    path = submit(started, old, "?set=hangs").headers["location"]
    assert eventually(lambda: started.runs())
    begun = time.monotonic()

    answer = httpx.delete(f"{started.url}{path}")

    assert eventually(lambda: not started.runs(), seconds=AT_ONCE_SECONDS)
    print(f"the run was gone after {time.monotonic() - begun:.2f} s")
    assert answer.json()["status"] == "cancelled"
    assert httpx.get(f"{started.url}{path}/result").status_code == 409
    assert not list((folder / "data" / "jobs").iterdir())


def test_second_service_on_the_same_data_is_refused(
    started: Service, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "migrations").symlink_to(folder / "migrations")

    with (
        pytest.raises(AssertionError, match="is used by another service"),
        running_service(other, MIGRATE_CKPT_DATA_FOLDER=str(folder / "data")),
    ):
        pass

    assert httpx.get(f"{started.url}/jobs").json() == {"jobs": []}


def test_events_tell_of_a_job_until_it_has_ended(started: Service, folder: Path, old: Path) -> None:
    path = submit(started, old).headers["location"]
    seen = []

    with httpx.stream("GET", f"{started.url}{path}/events", timeout=20) as answer:
        for line in answer.iter_lines():
            seen.append(line)

    assert answer.headers["content-type"].startswith("text/event-stream")
    assert any('"migration": "0001_first (1 of 1)"' in line for line in seen)
    assert seen[0] == "event: status"
    assert '"status": "succeeded"' in [line for line in seen if line][-1]

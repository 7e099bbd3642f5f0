"""Many processes on one PostgreSQL and one bucket: any of them may die, and any of them answers for any job."""

from __future__ import annotations

import io
import os
import signal
import textwrap
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from tests.acceptance.conftest import Service, children, eventually, is_alive, running_service
from tests.acceptance.seaweed import Bucket, running_seaweed
from tests.postgres import Postgres, running_postgres

obstore = pytest.importorskip("obstore", reason="the extra [jobs] is not installed")
pytest.importorskip("dbos", reason="the extra [jobs] is not installed")
pytestmark = pytest.mark.acceptance

SECONDS = 120
RENAMES = """
    import time

    def handle(ckpt):
        open("begun", "wb").close()
        time.sleep({seconds})
        weights = ckpt["state_dict"]
        for key in list(weights):
            weights[key.removeprefix("model.")] = weights.pop(key)
        return ckpt
"""


class Cluster:
    """Processes on one database."""

    def __init__(self, folder: Path, postgres: Postgres, bucket: Bucket) -> None:
        self.folder = folder
        self.postgres = postgres
        self.bucket = bucket
        name = uuid.uuid4().hex
        self.results = f"s3://{bucket.name}/{name}"
        self.environment = {
            "MIGRATE_CKPT_DATABASE_URL": postgres.new_database(name),
            "MIGRATE_CKPT_RESULTS_URL": self.results,
            "MIGRATE_CKPT_MAX_CONCURRENT_RUNS": "2",
            "MIGRATE_CKPT_ALLOWED_SOURCES": f"s3://{bucket.name}/in",
            "MIGRATE_CKPT_ALLOWED_DESTINATIONS": f"s3://{bucket.name}/out",
            **bucket.environment,
        }
        self.stack = ExitStack()
        self.processes: dict[str, Service] = {}
        for set_name, seconds in (("", 0), ("slow", 4), ("quick", 0.2)):
            (folder / "migrations" / set_name).mkdir(parents=True, exist_ok=True)
            code = textwrap.dedent(RENAMES).format(seconds=seconds)
            (folder / "migrations" / set_name / "0001_rename.py").write_text(code)

    def start(self, *names: str) -> None:
        """Start processes at once: web-… or worker-…."""
        with ThreadPoolExecutor() as pool:
            started = pool.map(self._start, names)
            self.processes.update(zip(names, started, strict=True))

    def _start(self, name: str) -> Service:
        (self.folder / name).mkdir(exist_ok=True)
        service: Service = self.stack.enter_context(
            running_service(
                self.folder / name,
                command="worker" if name.startswith("worker") else "serve",
                MIGRATE_CKPT_MIGRATIONS_FOLDER=str(self.folder / "migrations"),
                **self.environment,
            )
        )
        return service

    def web(self, number: int = 0) -> str:
        return [each.url for name, each in self.processes.items() if name.startswith("web")][number]

    def workers(self) -> dict[str, Service]:
        return {name: each for name, each in self.processes.items() if name.startswith("worker")}

    def busy_worker(self) -> str:
        """The name of a worker whose migration has begun."""
        assert eventually(lambda: self._busy_workers(), seconds=SECONDS)
        return self._busy_workers()[0]

    def _busy_workers(self) -> list[str]:
        return [name for name, each in self.workers().items() if each.begun_sleeps()]

    def keys(self, folder: str) -> list[str]:
        """What lies in a folder of the bucket that the processes share."""
        prefix = f"{self.results.rpartition('/')[2]}/{folder}"
        listed = obstore.list(self.bucket.store(), prefix)
        return [each["path"] for batch in listed for each in batch]

    def kill(self, name: str) -> None:
        """End a process as a power cut would, its runs with it."""
        service = self.processes.pop(name)
        fork_server = service.fork_server()
        runs = children(fork_server)
        os.kill(service.pid, signal.SIGKILL)
        service.process.wait()
        assert eventually(lambda: not any(map(is_alive, [fork_server, *runs])))


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Postgres, Bucket]]:
    with (
        running_postgres() as postgres,
        running_seaweed(tmp_path_factory.mktemp("seaweed")) as bucket,
    ):
        yield postgres, bucket


@contextmanager
def new_cluster(folder: Path, servers: tuple[Postgres, Bucket]) -> Iterator[Cluster]:
    cluster = Cluster(folder, *servers)
    with cluster.stack:
        yield cluster


@pytest.fixture
def cluster(tmp_path: Path, servers: tuple[Postgres, Bucket]) -> Iterator[Cluster]:
    with new_cluster(tmp_path, servers) as cluster:
        yield cluster


def checkpoint(value: float = 0.0, *, numbers: int = 100) -> bytes:
    file = io.BytesIO()
    weights = {f"model.layer{i}": torch.full((numbers,), value + i) for i in range(3)}
    torch.save({"state_dict": weights}, file)
    return file.getvalue()


def submit(url: str, content: bytes, query: str = "", **headers: str) -> str:
    answer = httpx.post(f"{url}/jobs{query}", content=content, headers=headers, timeout=60)
    assert answer.status_code == 202, answer.text
    path: str = answer.headers["location"]
    return path


def document(url: str, path: str) -> dict[str, Any]:
    answer = httpx.get(f"{url}{path}", timeout=60)
    found: dict[str, Any] = answer.json()
    return found


def wait_for(url: str, path: str) -> dict[str, Any]:
    assert eventually(lambda: document(url, path).get("ended"), seconds=SECONDS), document(
        url, path
    )
    return document(url, path)


def assert_migrated(content: bytes, value: float) -> None:
    weights = torch.load(io.BytesIO(content), weights_only=True)["state_dict"]
    assert list(weights) == ["layer0", "layer1", "layer2"]
    assert all(bool((tensor == value + i).all()) for i, tensor in enumerate(weights.values()))


def assert_result(url: str, path: str, value: float) -> None:
    done = wait_for(url, path)
    assert done["status"] == "succeeded", done
    assert_migrated(httpx.get(f"{url}{done['result']['url']}").raise_for_status().content, value)


def test_any_process_answers_for_any_job(cluster: Cluster) -> None:
    cluster.start("web-1", "web-2", "worker-1", "worker-2")
    here, there = cluster.web(0), cluster.web(1)

    path = submit(here, checkpoint(7.0))
    assert_result(there, path, 7.0)

    result = f"{there}{path}/result"
    whole = httpx.get(result)
    part = httpx.get(result, headers={"Range": "bytes=2-5", "Want-Repr-Digest": "sha-256=1"})
    last = httpx.get(result, headers={"Range": "bytes=-3"})
    beyond = httpx.get(result, headers={"Range": f"bytes={len(whole.content)}-"})
    cached = httpx.get(result, headers={"If-None-Match": whole.headers["etag"]})
    head = httpx.head(result)
    assert (part.status_code, part.content) == (206, whole.content[2:6])
    assert part.headers["content-range"] == f"bytes 2-5/{len(whole.content)}"
    assert part.headers["repr-digest"].startswith("sha-256=:")
    assert (last.status_code, last.content) == (206, whole.content[-3:])
    assert (beyond.status_code, beyond.json()["error_type"]) == (416, "range_not_satisfiable")
    assert cached.status_code == 304
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(whole.content)))

    # The same again is answered from the kept result, whoever is asked.
    again = wait_for(here, submit(there, checkpoint(7.0)))
    assert len(cluster.keys("results/")) == 2  # One checkpoint, and what is said of it.
    assert again["result"]["fingerprint"] == document(here, path)["result"]["fingerprint"]
    assert {job["id"] for job in document(here, "/jobs")["jobs"]} == {
        job["id"] for job in document(there, "/jobs")["jobs"]
    }
    replicas = httpx.get(f"{here}/readyz?verbose").json()["replicas"]
    assert replicas == f"any number: jobs are kept in PostgreSQL, and results in {cluster.results}"

    # What was waiting in the bucket is gone, and so are the files of both workers.
    assert not cluster.keys("uploads/")
    for worker in cluster.workers().values():
        assert eventually(lambda w=worker: not list(w.scratch.glob("migrate-ckpt-*/jobs/jobs/*")))


def test_key_that_two_processes_are_sent_is_one_job(cluster: Cluster) -> None:
    cluster.start("web-1", "web-2", "worker-1")
    headers = {"Idempotency-Key": "k1"}

    def send(number: int) -> str:
        return submit(cluster.web(number % 2), checkpoint(1.0), "?set=quick", **headers)

    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(send, range(8)))

    assert len(paths) == 1
    assert_result(cluster.web(), paths.pop(), 1.0)
    other = httpx.post(f"{cluster.web(1)}/jobs", content=checkpoint(2.0), headers=headers)
    assert (other.status_code, other.json()["error_type"]) == (422, "key_reused")


def test_job_is_cancelled_from_elsewhere(cluster: Cluster) -> None:
    cluster.start("web-1", "web-2", "worker-1")
    path = submit(cluster.web(0), checkpoint(1.0), "?set=slow")
    worker = cluster.processes[cluster.busy_worker()]

    begun = time.monotonic()
    httpx.delete(f"{cluster.web(1)}{path}").raise_for_status()
    assert eventually(lambda: not worker.runs())
    print(
        f"the run of a worker ended {time.monotonic() - begun:.2f} s after the request to a web process"
    )

    assert document(cluster.web(0), path)["status"] == "cancelled"
    assert not worker.scratch_folders()


def test_job_of_a_killed_worker_is_done_by_another(cluster: Cluster) -> None:
    cluster.start("web-1", "worker-1", "worker-2")
    path = submit(cluster.web(), checkpoint(3.0), "?set=slow")
    victim = cluster.busy_worker()

    killed = time.monotonic()
    cluster.kill(victim)
    (other,) = cluster.workers().values()
    assert eventually(other.begun_sleeps, seconds=SECONDS)
    seconds = time.monotonic() - killed

    print(f"a killed worker's job ran again after {seconds:.1f} s")
    # Ten are promised, on a machine that has time.
    assert seconds < 30
    assert_result(cluster.web(), path, 3.0)


def test_job_of_a_stopped_worker_is_done_by_another(cluster: Cluster) -> None:
    cluster.environment["MIGRATE_CKPT_SHUTDOWN_GRACE_SECONDS"] = "0"
    cluster.start("web-1", "worker-1", "worker-2")
    path = submit(cluster.web(), checkpoint(4.0), "?set=slow")
    stopped = cluster.processes.pop(cluster.busy_worker())

    stopped.process.send_signal(signal.SIGTERM)
    stopped.process.wait(30)

    assert_result(cluster.web(), path, 4.0)


def test_many_jobs_survive_the_death_of_a_worker(cluster: Cluster) -> None:
    cluster.start("web-1", "web-2", "worker-1", "worker-2")
    count = 200
    with ThreadPoolExecutor(4) as pool:
        paths = list(
            pool.map(
                lambda n: submit(cluster.web(n % 2), checkpoint(float(n)), "?set=quick"),
                range(count),
            )
        )
    begun = time.monotonic()

    def done() -> int:
        return len(document(cluster.web(), "/jobs?status=succeeded&limit=500")["jobs"])

    assert eventually(lambda: done() >= 20, seconds=SECONDS)
    at_death = done()
    cluster.kill("worker-1")
    assert eventually(lambda: done() == count, seconds=300)

    kept = cluster.keys("results/")
    again = len({key.rpartition("/")[0] for key in kept}) - count
    print(
        f"{count} jobs, a worker killed after {at_death}: done in {time.monotonic() - begun:.0f} s, "
        f"{again} of them made a second result"
    )
    # No more than the dead one had in hand.
    assert again in (0, 1, 2)
    for number in range(0, count, 10):
        assert_result(cluster.web(1), paths[number], float(number))


def test_database_that_stops_hard_loses_nothing(
    tmp_path: Path, servers: tuple[Postgres, Bucket]
) -> None:
    # A server of its own: others have to have theirs.
    with running_postgres() as postgres, new_cluster(tmp_path, (postgres, servers[1])) as cluster:
        cluster.start("web-1", "worker-1", "worker-2")
        running = submit(cluster.web(), checkpoint(5.0), "?set=slow")
        cluster.busy_worker()
        waiting = [submit(cluster.web(), checkpoint(n), "?set=quick") for n in (6.0, 7.0, 8.0)]

        postgres.stop("immediate")
        refused = httpx.post(f"{cluster.web()}/jobs", content=checkpoint(9.0), timeout=60)
        at_once = httpx.post(f"{cluster.web()}/migrate", content=checkpoint(9.0), timeout=60)
        probe = httpx.get(f"{cluster.web()}/readyz?verbose").json()
        metrics = httpx.get(f"{cluster.web()}/metrics", timeout=60)
        time.sleep(2)
        postgres.start()

        assert (refused.status_code, refused.json()["error_type"]) == (503, "jobs_unavailable")
        assert "retry-after" in refused.headers
        assert_migrated(at_once.raise_for_status().content, 9.0)
        assert probe["checks"]["jobs"] == "The database that jobs are kept in does not answer."
        assert metrics.status_code == 200
        begun = time.monotonic()
        assert_result(cluster.web(), running, 5.0)
        for path, value in zip(waiting, (6.0, 7.0, 8.0), strict=True):
            assert_result(cluster.web(), path, value)
        print(f"all jobs were done {time.monotonic() - begun:.1f} s after the database was back")
        assert all(is_alive(each.pid) for each in cluster.processes.values())

        # And though it is away again, whoever is told to stop does.
        submit(cluster.web(), checkpoint(5.5), "?set=slow")
        cluster.busy_worker()
        postgres.stop("immediate")
        for each in cluster.processes.values():
            each.process.send_signal(signal.SIGTERM)
        assert [each.process.wait(40) for each in cluster.processes.values()] == [0, 0, 0]
        postgres.start()


def test_checkpoint_goes_from_bucket_to_bucket_though_a_worker_dies(cluster: Cluster) -> None:
    cluster.start("web-1", "worker-1", "worker-2")
    store = cluster.bucket.store()
    obstore.put(store, "in/a.ckpt", checkpoint(6.0))
    members = {
        "source": f"s3://{cluster.bucket.name}/in/a.ckpt",
        "destination": f"s3://{cluster.bucket.name}/out/a.ckpt",
        "set": "slow",
    }
    path = httpx.post(f"{cluster.web()}/jobs", json=members).headers["location"]
    cluster.kill(cluster.busy_worker())

    done = wait_for(cluster.web(), path)
    assert done["status"] == "succeeded", done
    assert_migrated(bytes(obstore.get(store, "out/a.ckpt").bytes()), 6.0)

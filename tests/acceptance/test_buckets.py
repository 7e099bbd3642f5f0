"""Checkpoints that lie in buckets of a real S3 server: fetched, migrated, and written back in parts."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import textwrap
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from tests.acceptance.conftest import Service, children, eventually, is_alive, running_service
from tests.acceptance.seaweed import Bucket, running_seaweed

obstore = pytest.importorskip("obstore", reason="the extra [jobs] is not installed")
pytest.importorskip("dbos", reason="the extra [jobs] is not installed")
pytestmark = pytest.mark.acceptance

SECONDS = 120
RENAMES = """
    def handle(ckpt):
        weights = ckpt["state_dict"]
        for key in list(weights):
            weights[key.removeprefix("model.")] = weights.pop(key)
        return ckpt
"""


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    with running_seaweed(tmp_path_factory.mktemp("seaweed")) as bucket:
        yield bucket


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, wait in (("", 0), ("slow", 3)):
        (tmp_path / "migrations" / name).mkdir(exist_ok=True)
        code = f"import time\n{textwrap.dedent(RENAMES)}".replace(
            "    weights = ckpt", f"    time.sleep({wait})\n    weights = ckpt"
        )
        (tmp_path / "migrations" / name / "0001_rename.py").write_text(code)
    return tmp_path


@pytest.fixture
def started(folder: Path, bucket: Bucket) -> Iterator[Service]:
    with start(folder, bucket) as service:
        yield service


def start(folder: Path, bucket: Bucket, **environment: str) -> Any:
    return running_service(
        folder,
        MIGRATE_CKPT_DATA_FOLDER=str(folder / "data"),
        MIGRATE_CKPT_ALLOWED_SOURCES=f"s3://{bucket.name}/in",
        MIGRATE_CKPT_ALLOWED_DESTINATIONS=f"s3://{bucket.name}/out",
        **{**bucket.environment, **environment},
    )


def put(bucket: Bucket, key: str, *, numbers: int = 1000) -> tuple[str, dict[str, torch.Tensor]]:
    """Put a checkpoint into the bucket; return its URL, and its weights."""
    weights = {f"model.layer{i}": torch.rand(numbers) for i in range(4)}
    file = io.BytesIO()
    torch.save({"state_dict": weights, "epoch": 3}, file)
    file.seek(0)
    obstore.put(bucket.store(), key, file)
    return f"s3://{bucket.name}/{key}", weights


def assert_migrated(bucket: Bucket, key: str, weights: dict[str, torch.Tensor]) -> None:
    content = bytes(obstore.get(bucket.store(), key).bytes())
    found = torch.load(io.BytesIO(content), weights_only=True)["state_dict"]
    assert list(found) == [name.removeprefix("model.") for name in weights]
    for name, tensor in weights.items():
        assert torch.equal(found[name.removeprefix("model.")], tensor)


def held_bytes(service: Service) -> int:
    """What all processes of the service hold, each page once, those of files aside."""
    fork_server = service.fork_server()
    pids = [service.pid, fork_server, *children(fork_server)]
    return sum(_share(pid, name) for pid in pids for name in ("Pss_Anon", "Pss_Shmem"))


def _share(pid: int, name: str) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(name))


def order(service: Service, **members: Any) -> str:
    answer = httpx.post(f"{service.url}/jobs", json=members)
    assert answer.status_code == 202, answer.text
    return f"{service.url}{answer.headers['location']}"


def wait_for(url: str) -> dict[str, Any]:
    assert eventually(lambda: httpx.get(url).json()["ended"], seconds=SECONDS)
    document: dict[str, Any] = httpx.get(url).json()
    return document


def test_checkpoint_goes_from_bucket_to_bucket(started: Service, bucket: Bucket) -> None:
    source, weights = put(bucket, "in/team/a.ckpt")
    target = f"s3://{bucket.name}/out/a.ckpt"

    done = wait_for(order(started, source=source, destination=target))

    assert done["status"] == "succeeded", done
    assert done["report"]["ran"] == ["0001_rename"]
    assert_migrated(bucket, "out/a.ckpt", weights)
    # The same again finds its own result there, which is no reason to refuse.
    again = wait_for(order(started, source=source, destination=target))
    assert again["status"] == "succeeded", again


def test_large_one_is_written_in_parts_and_memory_stays_flat(
    started: Service, bucket: Bucket
) -> None:
    source, weights = put(bucket, "in/large.ckpt", numbers=25 * 2**20 // 2)
    target = f"s3://{bucket.name}/out/large.ckpt"
    most = 0
    url = order(started, source=source, destination=target)

    def has_ended() -> bool:
        nonlocal most
        most = max(most, held_bytes(started))
        return bool(httpx.get(url).json()["ended"])

    assert eventually(has_ended, seconds=SECONDS)
    done = httpx.get(url).json()
    assert done["status"] == "succeeded", done
    assert done["size"] > 200 * 10**6
    assert most < 500 * 2**20
    assert_migrated(bucket, "out/large.ckpt", weights)
    assert not started.scratch_folders()


def test_result_of_a_source_in_a_bucket_can_be_kept_here(started: Service, bucket: Bucket) -> None:
    source, _ = put(bucket, "in/b.ckpt")

    done = wait_for(order(started, source=source))
    answer = httpx.get(f"{started.url}{done['result']['url']}", headers={"Range": "bytes=0-3"})

    assert (answer.status_code, answer.content) == (206, b"PK\3\4")


def test_what_is_not_there_or_not_ours_fails_with_a_sentence(
    started: Service, bucket: Bucket
) -> None:
    source, _ = put(bucket, "in/c.ckpt")
    missing = wait_for(order(started, source=f"s3://{bucket.name}/in/none.ckpt"))
    assert missing["problem"]["error_type"] == "source_not_found"

    obstore.put(bucket.store(), "out/theirs.ckpt", b"somebody's")
    target = f"s3://{bucket.name}/out/theirs.ckpt"
    refused = wait_for(order(started, source=source, destination=target))
    assert refused["problem"]["error_type"] == "destination_exists"
    assert bytes(obstore.get(bucket.store(), "out/theirs.ckpt").bytes()) == b"somebody's"

    for other in ("s3://other/in/c.ckpt", f"s3://{bucket.name}/private/c.ckpt"):
        answer = httpx.post(f"{started.url}/jobs", json={"source": other})
        assert (answer.status_code, answer.json()["error_type"]) == (403, "source_not_allowed")


def test_wrong_credentials_are_said_without_being_told(folder: Path, bucket: Bucket) -> None:
    source, _ = put(bucket, "in/d.ckpt")
    with start(folder, bucket, AWS_SECRET_ACCESS_KEY="wrongsecret") as service:
        done = wait_for(order(service, source=source))

        assert done["problem"]["error_type"] == "source_refused"
        assert "wrongsecret" not in service.log.read_text() + str(done)


def test_job_that_is_killed_in_the_middle_writes_its_result_once(
    folder: Path, bucket: Bucket
) -> None:
    source, weights = put(bucket, "in/e.ckpt")
    target = f"s3://{bucket.name}/out/e.ckpt"
    with start(folder, bucket) as service:
        path = order(service, source=source, destination=target, set="slow")
        assert eventually(
            lambda: (httpx.get(path).json()["progress"] or {}).get("migration"), seconds=SECONDS
        )
        fork_server = service.fork_server()
        runs = children(fork_server)
        os.kill(service.pid, signal.SIGKILL)
        service.process.wait()
        assert eventually(lambda: not any(map(is_alive, [fork_server, *runs])))
    with start(folder, bucket) as service:
        done = wait_for(f"{service.url}/jobs/{path.rpartition('/')[2]}")

    assert done["status"] == "succeeded", done
    assert_migrated(bucket, "out/e.ckpt", weights)
    names = [each["path"] for batch in obstore.list(bucket.store(), "out/") for each in batch]
    assert names.count("out/e.ckpt") == 1


def test_artifacts_of_a_registry_are_written_and_read_in_a_bucket(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    from app.registry.artifacts import Artifact, BucketArtifacts
    from app.storage.buckets import store_of
    from app.storage.locations import Location

    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    # One that knows this server's address.
    store_of.cache_clear()
    artifacts = BucketArtifacts(Location("s3", bucket.name, "runs/1/artifacts"))

    async def blocks() -> AsyncIterator[bytes]:
        yield b"ab"
        yield b"c"

    async def work() -> tuple[list[Artifact], bytes]:
        await artifacts.write("model/new.ckpt", blocks, 3)
        await artifacts.write("model/sub/x", blocks, 3)
        read = b"".join([block async for block in artifacts.read("model/new.ckpt")])
        return await artifacts.list(), read

    listed, read = asyncio.run(work())
    store_of.cache_clear()

    assert listed == [Artifact("model/new.ckpt", 3), Artifact("model/sub/x", 3)]
    assert read == b"abc"

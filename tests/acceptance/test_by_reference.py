"""Checkpoints in a bucket that are migrated by reference: what no operation reads stays there, and is copied there."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from tests.acceptance.conftest import Service, eventually, running_service
from tests.acceptance.counting_proxy import Counted, counting_proxy
from tests.acceptance.seaweed import Bucket, running_seaweed

obstore = pytest.importorskip("obstore", reason="the extra [jobs] is not installed")
pytest.importorskip("boto3", reason="the extra [jobs] is not installed")
pytest.importorskip("dbos", reason="the extra [jobs] is not installed")
pytestmark = pytest.mark.acceptance

COUNT = int(os.environ.get("TEST_TENSORS", "64"))
TENSOR_BYTES = 4 * 2**20
SECONDS = 120
# The first part has 5 MiB, which are fetched and sent, and beside the headers and the pickle there is HTTP.
MOST_BYTES = 16 * 10**6

SETS = {
    "": 'from migrate_ckpt.operations import rename\noperations = [rename("layers.{i}.w", "blocks.{i}.weight")]\n',
    "split": """
from migrate_ckpt.operations import split
operations = [split("layers.7.w", ["layers.7.a", "layers.7.b"])]
""",
    "function": """
def handle(ckpt):
    weights = ckpt["state_dict"]
    for key in list(weights):
        weights[key.replace("layers", "blocks")] = weights.pop(key)
    return ckpt
""",
    "failing": 'from migrate_ckpt.operations import rename\noperations = [rename("no.key", "b")]\n',
}


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    with running_seaweed(tmp_path_factory.mktemp("seaweed")) as bucket:
        yield bucket


@pytest.fixture(scope="module")
def counted(bucket: Bucket) -> Iterator[Counted]:
    with counting_proxy(bucket.endpoint) as counted:
        yield counted


@pytest.fixture(scope="module")
def weights(bucket: Bucket) -> dict[str, torch.Tensor]:
    weights = {f"layers.{i}.w": torch.rand(TENSOR_BYTES // 4) for i in range(COUNT)}
    file = io.BytesIO()
    torch.save({"state_dict": weights, "epoch": 3}, file)
    file.seek(0)
    obstore.put(bucket.store(), "in/large.ckpt", file)
    return weights


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, code in SETS.items():
        place = tmp_path / "migrations" / name
        place.mkdir(exist_ok=True)
        (place / "0001_x.py").write_text(code)
    return tmp_path


def start(folder: Path, bucket: Bucket, endpoint: str, **environment: str) -> Any:
    return running_service(
        folder,
        MIGRATE_CKPT_DATA_FOLDER=str(folder / "data"),
        MIGRATE_CKPT_ALLOWED_SOURCES=f"s3://{bucket.name}/in",
        MIGRATE_CKPT_ALLOWED_DESTINATIONS=f"s3://{bucket.name}/out",
        **{**bucket.environment, "AWS_ENDPOINT_URL": endpoint, **environment},
    )


@pytest.fixture
def started(folder: Path, bucket: Bucket, counted: Counted) -> Iterator[Service]:
    with start(folder, bucket, counted.url) as service:
        counted.reset()
        yield service


def migrate(service: Service, bucket: Bucket, name: str, **parameters: str) -> dict[str, Any]:
    order = {
        "source": f"s3://{bucket.name}/in/large.ckpt",
        "destination": f"s3://{bucket.name}/out/{name}.ckpt",
        **parameters,
    }
    answer = httpx.post(f"{service.url}/jobs", json=order)
    assert answer.status_code == 202, answer.text
    url = f"{service.url}{answer.headers['location']}"
    assert eventually(lambda: httpx.get(url).json()["ended"], seconds=SECONDS)
    document: dict[str, Any] = httpx.get(url).json()
    return document


def found(bucket: Bucket, name: str) -> dict[str, torch.Tensor]:
    content = bytes(obstore.get(bucket.store(), f"out/{name}.ckpt").bytes())
    state_dict: dict[str, torch.Tensor] = torch.load(io.BytesIO(content), weights_only=True)[
        "state_dict"
    ]
    return state_dict


def assert_renamed(bucket: Bucket, name: str, weights: dict[str, torch.Tensor]) -> None:
    migrated = found(bucket, name)
    assert list(migrated) == [f"blocks.{i}.weight" for i in range(COUNT)]
    for i in range(COUNT):
        assert torch.equal(migrated[f"blocks.{i}.weight"], weights[f"layers.{i}.w"])


def test_renaming_moves_no_tensor(
    started: Service, bucket: Bucket, counted: Counted, weights: dict[str, torch.Tensor]
) -> None:
    done = migrate(started, bucket, "renamed")

    moved = counted.sent + counted.received
    assert done["status"] == "succeeded", done
    assert done["report"]["bytes_verified"] is False
    assert moved < MOST_BYTES
    assert_renamed(bucket, "renamed", weights)
    assert not started.scratch_folders()
    print(f"renamed: {counted.received} bytes fetched, {counted.sent} sent")


def test_split_moves_that_tensor_besides(
    started: Service, bucket: Bucket, counted: Counted, weights: dict[str, torch.Tensor]
) -> None:
    done = migrate(started, bucket, "split", set="split")

    assert done["status"] == "succeeded", done
    assert counted.received > TENSOR_BYTES
    # It is fetched and sent, and its parts stand where they are filled up to 5 MiB.
    assert counted.sent + counted.received < MOST_BYTES + 2 * TENSOR_BYTES + 2 * 5 * 2**20
    migrated = found(bucket, "split")
    halves = [migrated["layers.7.a"], migrated["layers.7.b"]]
    assert torch.equal(torch.cat(halves), weights["layers.7.w"])
    assert torch.equal(migrated["layers.8.w"], weights["layers.8.w"])


def test_function_has_all_of_the_file(
    started: Service, bucket: Bucket, counted: Counted, weights: dict[str, torch.Tensor]
) -> None:
    done = migrate(started, bucket, "function", set="function")

    assert done["status"] == "succeeded", done
    assert done["report"]["bytes_verified"] is True
    assert counted.received > COUNT * TENSOR_BYTES
    assert next(iter(found(bucket, "function"))) == "blocks.0.w"


def test_setting_reads_all(
    folder: Path, bucket: Bucket, counted: Counted, weights: dict[str, torch.Tensor]
) -> None:
    with start(folder, bucket, counted.url, MIGRATE_CKPT_FETCH_WHOLE="true") as service:
        counted.reset()
        done = migrate(service, bucket, "whole")

    assert done["status"] == "succeeded", done
    assert done["report"]["bytes_verified"] is True
    assert counted.received > COUNT * TENSOR_BYTES
    assert_renamed(bucket, "whole", weights)


def test_migration_that_fails_says_why(
    started: Service, bucket: Bucket, weights: dict[str, torch.Tensor]
) -> None:
    done = migrate(started, bucket, "failing", set="failing")

    assert done["status"] == "failed"
    assert "no.key" in str(done["problem"])


def test_what_is_there_already_is_found_again(
    started: Service, bucket: Bucket, counted: Counted, weights: dict[str, torch.Tensor]
) -> None:
    migrate(started, bucket, "again", overwrite=True)  # type: ignore[arg-type]
    counted.reset()

    done = migrate(started, bucket, "again")

    assert done["status"] == "succeeded", done
    assert counted.sent < 2**20


def test_nothing_is_left_of_an_upload_whose_source_has_changed(
    started: Service, bucket: Bucket, weights: dict[str, torch.Tensor]
) -> None:
    import boto3

    from app.responses import Extent
    from app.storage.locations import parse_location
    from app.storage.part_copies import PartCopies
    from app.storage.part_fetching import RemoteObject, RemoteRange

    client = boto3.client(
        "s3",
        endpoint_url=bucket.endpoint,
        region_name="us-east-1",
        aws_access_key_id=bucket.environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=bucket.environment["AWS_SECRET_ACCESS_KEY"],
    )
    size = COUNT * TENSOR_BYTES
    source = RemoteObject(parse_location(f"s3://{bucket.name}/in/large.ckpt"), '"another"', size)
    target = parse_location(f"s3://{bucket.name}/out/changed.ckpt")
    extents: list[Extent | RemoteRange] = [RemoteRange(source, 0, size)]

    with pytest.raises(Exception, match="was changed"):
        PartCopies(client).write(target, extents, "x", lambda _: None, lambda: None)

    uploads = client.list_multipart_uploads(Bucket=bucket.name).get("Uploads", [])
    assert not [upload for upload in uploads if upload["Key"] == "out/changed.ckpt"]

"""A sharded checkpoint over HTTP: a tar goes in by curl, as a stream, and a tar comes out."""

from __future__ import annotations

import json
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.acceptance.conftest import Service, running_service
from tests.migrate_ckpt.sharded.test_sharded_run import RENAME_LAST, Model, load

pytestmark = pytest.mark.acceptance


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    (folder / "migrations").mkdir()
    (folder / "migrations" / "0001_rename.py").write_text(RENAME_LAST)
    with running_service(folder) as service:
        yield service


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return Model(tmp_path / "model", "safetensors")


def test_folder_is_streamed_in_and_out(service: Service, model: Model, tmp_path: Path) -> None:
    command = (
        f"tar -c -C {model.folder} . | curl --silent --fail-with-body -D {tmp_path}/headers "
        f"-H 'Content-Type: application/x-tar' --data-binary @- {service.url}/migrate > {tmp_path}/new.tar"
    )

    subprocess.run(["bash", "-o", "pipefail", "-c", command], check=True)

    with tarfile.open(tmp_path / "new.tar") as tar:
        tar.extractall(tmp_path / "new", filter="data")
    before, after = load(model.folder), load(tmp_path / "new")
    assert torch.equal(after["blocks.2.w"], before["layers.2.w"])
    assert '"ran": ["0001_rename"]' in (tmp_path / "headers").read_text()


def test_upload_by_form_keeps_its_name_and_tells_what_was_written(
    service: Service, model: Model, tmp_path: Path
) -> None:
    subprocess.run(["tar", "-cf", tmp_path / "model.tar", "-C", tmp_path, "model"], check=True)
    curl = ["curl", "--silent", "--fail-with-body", "-F", f"file=@{tmp_path / 'model.tar'}"]

    answer = subprocess.run(
        [*curl, "-D", "-", "-o", tmp_path / "new.tar", f"{service.url}/migrate"],
        check=True,
        capture_output=True,
        text=True,
    )

    assert 'filename="model.migrated.tar"' in answer.stdout
    with tarfile.open(tmp_path / "new.tar") as tar:
        names = tar.getnames()
    assert sorted(names) == sorted(f"model/{path.name}" for path in model.folder.iterdir())


def test_plan_and_inspect(service: Service, model: Model, tmp_path: Path) -> None:
    subprocess.run(["tar", "-cf", tmp_path / "model.tar", "-C", model.folder, "."], check=True)
    answers = {}
    for route in ("plan?changes=true", "inspect"):
        curl = ["curl", "--silent", "-F", f"file=@{tmp_path / 'model.tar'}"]
        done = subprocess.run([*curl, f"{service.url}/{route}"], check=True, capture_output=True)
        answers[route] = json.loads(done.stdout)

    assert answers["inspect"]["format"] == "sharded safetensors"
    assert answers["plan?changes=true"]["steps"][0]["counts"] == {"renamed": 1}

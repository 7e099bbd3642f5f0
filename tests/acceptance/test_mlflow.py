"""A real MLflow server tells of a new version, and a migrated one appears beside it, once."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch

from app.hooks.signatures import MLFLOW
from tests.acceptance.conftest import Service, eventually, running_service
from tests.acceptance.mlflow_server import Mlflow, running_mlflow
from tests.acceptance.seaweed import running_seaweed

pytest.importorskip("dbos", reason="the extra [jobs] is not installed")
pytestmark = pytest.mark.acceptance

SECRET = "s3cr3t-key-of-the-test"
SECONDS = 120
RENAMES = """
    def handle(ckpt):
        weights = ckpt["state_dict"]
        for key in list(weights):
            weights[key.removeprefix("model.")] = weights.pop(key)
        return ckpt
"""
UNPACKS = """
    def handle(ckpt):
        return {"weight": ckpt._parameters["weight"]}
"""
FAILS = """
    def handle(ckpt):
        raise KeyError("optimizer")
"""


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mlflow]:
    with running_mlflow(tmp_path_factory.mktemp("mlflow")) as mlflow:
        yield mlflow


@pytest.fixture
def model() -> str:
    return f"vision-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, code in (("", RENAMES), ("unpacks", UNPACKS), ("fails", FAILS)):
        (tmp_path / "migrations" / name).mkdir(exist_ok=True)
        (tmp_path / "migrations" / name / "0001_rename.py").write_text(textwrap.dedent(code))
    return tmp_path


def environment(folder: Path, mlflow: Mlflow) -> dict[str, str]:
    return {
        "MIGRATE_CKPT_DATA_FOLDER": str(folder / "data"),
        "MIGRATE_CKPT_MLFLOW_URL": mlflow.url,
        "MIGRATE_CKPT_MLFLOW_SECRET": SECRET,
        "MIGRATE_CKPT_MLFLOW_MODELS": "*-whole=unpacks *-fails=fails vision-*=default",
        "MIGRATE_CKPT_MLFLOW_ALIASES": "candidate",
    }


@pytest.fixture
def service(folder: Path, mlflow: Mlflow) -> Iterator[Service]:
    with running_service(folder, **environment(folder, mlflow)) as service:
        mlflow.call_back(f"{service.url}/hooks/mlflow", SECRET)
        # The server looks at its list of webhooks again after a second.
        time.sleep(1.5)
        yield service


def checkpoint(value: float = 1.0) -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": {"model.weight": torch.full((1000,), value)}}, file)
    return file.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def deliver(service: Service, model: str, version: str, *, delivery_id: str) -> httpx.Response:
    """What MLflow sends, once more."""
    data = {"name": model, "version": version}
    body = json.dumps({"entity": "model_version", "action": "created", "data": data}).encode()
    now = str(int(time.time()))
    signature = MLFLOW.sign(SECRET, body=body, delivery_id=delivery_id, time=now)
    headers = {
        "X-MLflow-Delivery-Id": delivery_id,
        "X-MLflow-Timestamp": now,
        "X-MLflow-Signature": signature,
    }
    return httpx.post(f"{service.url}/hooks/mlflow", content=body, headers=headers)


def wait_for_tag(mlflow: Mlflow, model: str, version: str, value: str) -> dict[str, str]:
    """Wait until a version says what became of it; return its tags."""
    key = "migrate_ckpt.status"
    assert eventually(lambda: mlflow.tags(model, version).get(key), seconds=SECONDS)
    tags = mlflow.tags(model, version)
    assert tags[key] == value, tags
    return tags


def test_new_version_is_migrated_once_however_often_it_is_told(
    service: Service, mlflow: Mlflow, model: str
) -> None:
    old = checkpoint(3.0)
    files = {"old.ckpt": old, "sub/notes.json": b'{"a": 1}', "README": b""}
    begun = time.monotonic()
    version = mlflow.register(model, files)
    mlflow.post("registered-models/alias", name=model, alias="candidate", version=version)
    mlflow.post("registered-models/alias", name=model, alias="champion", version=version)

    tags = wait_for_tag(mlflow, model, version, "migrated")
    print(f"the migrated version was there {time.monotonic() - begun:.1f} s after the first")
    begun = time.monotonic()
    again = [deliver(service, model, version, delivery_id="the-same") for _ in range(4)]
    print(f"a delivery was answered after {(time.monotonic() - begun) / 4:.2f} s")
    assert {answer.status_code for answer in again} == {200}
    assert len({answer.json()["job"] for answer in again}) == 1

    # Ours tells of itself, too, and that is ignored.
    time.sleep(2)
    first, second = mlflow.versions(model)
    assert (first["version"], second["version"]) == (version, tags["migrate_ckpt.migrated_to"])
    new = mlflow.read(f"{second['source']}/old.ckpt")
    weights = torch.load(io.BytesIO(new), weights_only=True)["state_dict"]
    assert list(weights) == ["weight"]
    assert torch.equal(weights["weight"], torch.full((1000,), 3.0))
    assert mlflow.read(f"{second['source']}/sub/notes.json") == b'{"a": 1}'
    assert mlflow.read(f"{second['source']}/README") == b""
    assert second["tags"]["migrated_from"] == version
    assert second["tags"]["migrate_ckpt.migrations"] == "0001_rename"
    assert second["tags"]["migrate_ckpt.input_sha256"] == sha256(old)
    assert second["tags"]["migrate_ckpt.output_sha256"] == sha256(new)
    assert second["tags"]["migrate_ckpt.set"] == "default"
    assert second["tags"]["migrate_ckpt.set_digest"]
    assert second["tags"]["migrate_ckpt.fingerprint"]
    assert "0001_rename" in second["description"]
    aliases = mlflow.get("registered-models/get", name=model)["registered_model"]["aliases"]
    found = {each["alias"]: each["version"] for each in aliases}
    assert found == {"candidate": second["version"], "champion": version}
    document = httpx.get(f"{service.url}{again[0].json()['job']}").json()
    assert document["source"] == f"models:/{model}/{version}"
    assert document["model"]["new_version"] == second["version"]
    answer = httpx.get(f"{service.url}{document['url']}/result")
    assert (answer.status_code, answer.json()["error_type"]) == (409, "result_delivered")


def test_version_that_is_up_to_date_is_left_as_it_is(
    service: Service, mlflow: Mlflow, model: str
) -> None:
    version = mlflow.register(model, {"old.ckpt": checkpoint(4.0)})
    tags = wait_for_tag(mlflow, model, version, "migrated")
    _, second = mlflow.versions(model)
    new = mlflow.read(f"{second['source']}/old.ckpt")

    third = mlflow.register(model, {"again.ckpt": new})

    assert tags["migrate_ckpt.migrated_to"] == second["version"]
    wait_for_tag(mlflow, model, third, "current")
    assert len(mlflow.versions(model)) == 3


def test_version_that_is_one_file_becomes_one_file(
    service: Service, mlflow: Mlflow, model: str
) -> None:
    version = mlflow.register(
        model, {"old.ckpt": checkpoint(8.0), "other.ckpt": checkpoint(9.0)}, file="old.ckpt"
    )

    wait_for_tag(mlflow, model, version, "migrated")
    _, second = mlflow.versions(model)
    assert second["source"].endswith("/old.ckpt")
    weights = torch.load(io.BytesIO(mlflow.read(second["source"])), weights_only=True)
    assert list(weights["state_dict"]) == ["weight"]


def test_version_may_be_registered_by_run_by_logged_model_or_by_bucket(
    folder: Path, mlflow: Mlflow, model: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    obstore = pytest.importorskip("obstore", reason="the extra [jobs] is not installed")
    run = mlflow.post("runs/create", experiment_id="0", start_time=1)["run"]["info"]
    mlflow.put(f"{run['artifact_uri']}/kept/old.ckpt", checkpoint(1.0))
    logged = mlflow.post("logged-models", experiment_id="0", name="net")["model"]["info"]
    mlflow.put(f"{logged['artifact_uri']}/old.ckpt", checkpoint(2.0))
    with running_seaweed(tmp_path_factory.mktemp("seaweed")) as bucket:
        obstore.put(bucket.store(), "runs/7/old.ckpt", checkpoint(3.0))
        sources = {
            1.0: (f"runs:/{run['run_id']}/kept", {"run_id": run["run_id"]}),
            2.0: (f"models:/{logged['model_id']}", {"model_id": logged["model_id"]}),
            3.0: (f"s3://{bucket.name}/runs/7", {}),
        }
        settings = environment(folder, mlflow) | bucket.environment
        settings["MIGRATE_CKPT_ALLOWED_SOURCES"] = f"s3://{bucket.name}/runs"
        with running_service(folder, **settings) as service:
            for value, (source, members) in sources.items():
                version = mlflow.register_source(model, source, **members)
                deliver(service, model, version, delivery_id=version)
                tags = wait_for_tag(mlflow, model, version, "migrated")

                new = mlflow.versions(model)[-1]
                assert new["version"] == tags["migrate_ckpt.migrated_to"]
                content = io.BytesIO(mlflow.read(f"{new['source']}/old.ckpt"))
                weights = torch.load(content, weights_only=True)["state_dict"]
                assert torch.equal(weights["weight"], torch.full((1000,), value))


def test_why_there_is_no_migrated_version_stands_beside_the_first(
    service: Service, mlflow: Mlflow, model: str
) -> None:
    module = io.BytesIO()
    torch.save(torch.nn.Linear(2, 2), module)
    whole = {"MLmodel": b"flavors:\n  pytorch: {}\n", "data/model.pth": module.getvalue()}
    cases: dict[str, tuple[dict[str, bytes], str]] = {
        f"{model}-whole": (whole, "mlflow.pytorch.load_model"),
        f"{model}-fails": ({"old.ckpt": checkpoint()}, "KeyError"),
        model: ({"notes.txt": b"nothing"}, "has no checkpoint among its 1 files"),
        f"{model}-2": ({"old.pt": b"<html></html>"}, "a web page"),
    }

    for name, (files, reason) in cases.items():
        version = mlflow.register(name, files)
        tags = wait_for_tag(mlflow, name, version, "failed")
        assert reason in tags["migrate_ckpt.reason"], tags
        assert len(mlflow.versions(name)) == 1


def test_version_that_was_told_while_nobody_listened_is_found(
    folder: Path, mlflow: Mlflow, model: str
) -> None:
    version = mlflow.register(model, {"old.ckpt": checkpoint(5.0)})
    settings = environment(folder, mlflow)
    with running_service(folder, **settings) as service:
        assert "migrate_ckpt.status" not in mlflow.tags(model, version)
        done = run_app(settings, folder, "reconcile", "--url", service.url)

        assert done.returncode == 0, done.stderr
        assert f"models:/{model}/{version}: 202" in done.stdout
        wait_for_tag(mlflow, model, version, "migrated")
        again = run_app(settings, folder, "reconcile", "--url", service.url)
        assert f"models:/{model}/" not in again.stdout
    assert len(mlflow.versions(model)) == 2


def test_service_that_is_killed_in_the_middle_registers_one_version(
    folder: Path, mlflow: Mlflow, model: str
) -> None:
    slow = RENAMES.replace("weights =", 'open("begun", "wb").close(); time.sleep(3); weights =', 1)
    (folder / "migrations" / "slow").mkdir()
    (folder / "migrations" / "slow" / "0001_rename.py").write_text(
        f"import time\n{textwrap.dedent(slow)}"
    )
    version = mlflow.register(model, {"old.ckpt": checkpoint(2.5)})
    settings = environment(folder, mlflow) | {"MIGRATE_CKPT_MLFLOW_MODELS": "*=slow"}
    with running_service(folder, **settings) as service:
        assert deliver(service, model, version, delivery_id="a").status_code == 202
        assert eventually(service.begun_sleeps, seconds=SECONDS)
        os.kill(service.pid, signal.SIGKILL)
        service.process.wait()
        assert "migrate_ckpt.status" not in mlflow.tags(model, version)
    with running_service(folder, **settings) as service:
        assert deliver(service, model, version, delivery_id="a").status_code == 200
        wait_for_tag(mlflow, model, version, "migrated")

    assert len(mlflow.versions(model)) == 2


def test_service_looks_for_such_versions_itself(folder: Path, mlflow: Mlflow, model: str) -> None:
    version = mlflow.register(model, {"old.ckpt": checkpoint(6.0)})
    settings = environment(folder, mlflow) | {"MIGRATE_CKPT_MLFLOW_RECONCILE_SECONDS": "1"}

    with running_service(folder, **settings):
        wait_for_tag(mlflow, model, version, "migrated")
        time.sleep(3)

    assert len(mlflow.versions(model)) == 2


def test_failed_version_is_tried_again_when_that_is_asked_for(
    folder: Path, mlflow: Mlflow, model: str
) -> None:
    name = f"{model}-fails"
    version = mlflow.register(name, {"old.ckpt": checkpoint(7.0)})
    settings = environment(folder, mlflow)
    with running_service(folder, **settings) as service:
        assert deliver(service, name, version, delivery_id="a").status_code == 202
        wait_for_tag(mlflow, name, version, "failed")
    (folder / "migrations" / "fails" / "0001_rename.py").write_text(textwrap.dedent(RENAMES))
    with running_service(folder, **settings) as service:
        done = run_app(settings, folder, "reconcile", "--with-failed", "--url", service.url)

        assert f"models:/{name}/{version}: 202" in done.stdout, done.stderr
        assert eventually(lambda: len(mlflow.versions(name)) == 2, seconds=SECONDS)


def test_sample_is_sent_and_taken(service: Service, folder: Path, mlflow: Mlflow) -> None:
    settings = environment(folder, mlflow)
    done = run_app(settings, folder, "hook-test", "mlflow", "--url", service.url)

    assert done.returncode == 0, done.stderr
    assert "It is MLflow's test, and has arrived." in done.stdout
    # MLflow's own, as its client sends it.
    (ours,) = (
        each for each in mlflow.get("webhooks")["webhooks"] if each["url"].startswith(service.url)
    )
    answer = mlflow.post(f"webhooks/{ours['webhook_id']}/test")
    assert answer["result"]["success"] is True, answer


def run_app(
    settings: dict[str, str], folder: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        env={
            **os.environ,
            **settings,
            "MIGRATE_CKPT_MIGRATIONS_FOLDER": str(folder / "migrations"),
        },
        capture_output=True,
        text=True,
    )

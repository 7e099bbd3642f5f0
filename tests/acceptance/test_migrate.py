"""POST and PUT /migrate through curl: the file comes back migrated, named and reported."""

from __future__ import annotations

import json
import subprocess
import zipfile
from pathlib import Path

import httpx
import pytest
import torch

from migrate_ckpt import manifest_of
from tests.acceptance.conftest import MAX_UPLOAD_BYTES, Service, running_service

pytestmark = pytest.mark.acceptance


def curl(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["curl", "--silent", "--show-error", "--max-time", "60", *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def assert_migrated(path: Path, old: Path) -> None:
    before = torch.load(old, weights_only=True)["state_dict"]
    after = torch.load(path, weights_only=True)
    assert list(after["state_dict"]) == [key.removeprefix("model.") for key in before]
    for key, tensor in before.items():
        assert torch.equal(after["state_dict"][key.removeprefix("model.")], tensor)
    assert after["epoch"] == 3
    assert after["_migrate-ckpt-migrations"] == ["0001_first"]


def test_one_curl_migrates_a_checkpoint_and_reports(
    service: Service, old: Path, tmp_path: Path
) -> None:
    report_format = "%header{migration-report}"

    done = curl(
        *("--fail-with-body", "-F", f"file=@{old}", f"{service.url}/migrate"),
        *("-o", "new.ckpt", "-w", report_format),
        folder=tmp_path,
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ran"] == ["0001_first"]
    assert_migrated(tmp_path / "new.ckpt", old)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("-F", "file=@{old}", "{url}/migrate"), id="multipart"),
        pytest.param(
            ("-F", "set=default", "-F", "file=@{old}", "{url}/migrate"), id="field before"
        ),
        pytest.param(("-F", "file=@{old}", "-F", "set=default", "{url}/migrate"), id="field after"),
        pytest.param(("-T", "{old}", "{url}/migrate/"), id="named by curl"),
        pytest.param(("-T", "{old}", "{url}/migrate/old.ckpt"), id="named"),
        pytest.param(("-X", "POST", "-T", "{old}", "{url}/migrate"), id="raw"),
        pytest.param(("--data-binary", "@{old}", "{url}/migrate"), id="as a form that is none"),
        pytest.param(
            ("-X", "POST", "-H", "Transfer-Encoding: chunked", "-T", "{old}", "{url}/migrate"),
            id="chunked",
        ),
    ],
)
def test_every_way_to_send_a_file_gives_the_same_bytes(
    service: Service, old: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    expected = httpx.post(f"{service.url}/migrate", content=old.read_bytes()).content

    done = curl(
        *(part.format(old=old, url=service.url) for part in arguments),
        *("--fail-with-body", "-o", "new.ckpt"),
        folder=tmp_path,
    )

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "new.ckpt").read_bytes() == expected
    assert_migrated(tmp_path / "new.ckpt", old)


def test_curl_saves_under_a_name_of_its_own_beside_the_source(service: Service, old: Path) -> None:
    done = curl("-OJ", "-F", f"file=@{old}", f"{service.url}/migrate", folder=old.parent)

    assert done.returncode == 0, done.stderr
    assert_migrated(old.with_name("old.migrated.ckpt"), old)


def test_zip_holds_the_full_report_and_the_file(
    service: Service, old: Path, tmp_path: Path
) -> None:
    plain = httpx.put(f"{service.url}/migrate/old.ckpt", content=old.read_bytes())

    answer = httpx.put(
        f"{service.url}/migrate/old.ckpt",
        content=old.read_bytes(),
        headers={"Accept": "application/zip"},
    )

    assert answer.headers["content-type"] == "application/zip"
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert 'filename="old.migrated.zip"' in answer.headers["content-disposition"]
    (tmp_path / "answer.zip").write_bytes(answer.content)
    with zipfile.ZipFile(tmp_path / "answer.zip") as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["report.json", "old.migrated.ckpt"]
        assert archive.read("old.migrated.ckpt") == plain.content
        report = json.loads(archive.read("report.json"))
    assert report["ran"] == ["0001_first"]
    assert report["fingerprint"] == json.loads(plain.headers["migration-report"])["fingerprint"]


def test_migrated_file_needs_nothing_more(service: Service, old: Path) -> None:
    first = httpx.post(f"{service.url}/migrate", content=old.read_bytes())

    second = httpx.post(f"{service.url}/migrate", content=first.content)

    assert second.status_code == 200
    assert second.content == first.content
    assert json.loads(second.headers["migration-report"])["ran"] == []


def test_plan_says_what_would_run_and_runs_nothing(service: Service, old: Path) -> None:
    answer = httpx.post(f"{service.url}/plan?set=crashes", files={"file": old.read_bytes()})

    assert answer.status_code == 200
    assert answer.json()["pending"] == ["0001_first"]
    assert answer.json()["set"] == "crashes"


def test_inspect_names_the_globals_of_a_file(service: Service, old: Path) -> None:
    answer = httpx.post(f"{service.url}/inspect", content=old.read_bytes())

    assert answer.status_code == 200
    assert "torch._utils._rebuild_tensor_v2" in answer.json()["globals"]
    assert answer.json()["history"] == []


def test_failing_migration_is_named_with_the_report_so_far(service: Service, old: Path) -> None:
    answer = httpx.post(f"{service.url}/migrate?set=fails", content=old.read_bytes())

    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["error_type"] == "migration_failed"
    assert (problem["migration"], problem["position"], problem["count"]) == ("0001_first", 1, 1)
    assert problem["report"]["ran"] == []
    assert problem["request_id"] == answer.headers["x-request-id"]


def test_memory_does_not_grow_with_the_file(service: Service, tmp_path: Path) -> None:
    large = tmp_path / "large.ckpt"
    torch.save({"state_dict": {"model.w": torch.zeros(2**28 // 4 * 4)}}, large)
    before = peak_bytes(service.pid)

    done = curl("-F", f"file=@{large}", f"{service.url}/migrate", "-o", "new", folder=tmp_path)

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "new").stat().st_size > 2**30
    assert peak_bytes(service.pid) - before < 60 * 2**20


def peak_bytes(pid: int) -> int:
    (line,) = (
        line
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("VmHWM:")
    )
    return int(line.split()[1]) * 1024


def test_file_that_says_it_is_too_large_is_refused_before_it_is_sent(
    service: Service, tmp_path: Path
) -> None:
    with (tmp_path / "huge.ckpt").open("wb") as file:
        file.truncate(MAX_UPLOAD_BYTES + 1)

    done = curl(
        *("-T", "huge.ckpt", f"{service.url}/migrate/huge.ckpt"),
        *("-H", "Expect: 100-continue", "-w", "\n%{http_code} %{size_upload}"),
        folder=tmp_path,
    )

    body, _, numbers = done.stdout.rpartition("\n")
    assert numbers == "413 0"
    assert json.loads(body)["error_type"] == "too_large"


def test_result_that_is_not_what_the_set_says_is_refused(tmp_path: Path, old: Path) -> None:
    folder = tmp_path / "migrations"
    folder.mkdir()
    (folder / "0001_rename.py").write_text(
        '"""Rename."""\nfrom migrate_ckpt.operations import strip_prefix\noperations = [strip_prefix("model.")]\n'
    )
    weights = {f"layer{i}.weight": torch.zeros(64, 64) for i in range(3)}
    (folder / "manifest.json").write_text(manifest_of(weights).to_json())
    with running_service(tmp_path) as service:
        good = httpx.post(f"{service.url}/migrate", content=old.read_bytes())
        torch.save({"state_dict": {"model.layer0.weight": torch.zeros(64, 8)}}, tmp_path / "other")
        bad = httpx.post(f"{service.url}/migrate", content=(tmp_path / "other").read_bytes())

    assert good.status_code == 200
    problem = bad.json()
    assert (bad.status_code, problem["error_type"]) == (422, "manifest_not_met")
    kinds = [difference["kind"] for difference in problem["differences"]]
    assert kinds == ["missing", "missing", "shape"]
    assert problem["report"]["ran"] == ["0001_rename"]

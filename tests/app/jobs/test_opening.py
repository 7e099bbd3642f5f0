"""Settings for jobs that could not be kept are refused at the start, in a sentence that says what to set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.jobs.opening import check_settings, describe_replicas
from app.main import create_app
from app.settings import Settings, SettingsError, read_settings
from tests.app.conftest import started

DATABASE = "postgresql://me:hunter2@127.0.0.1:1/jobs"
BUCKET = "s3://bucket/folder/"


def settings(tmp_path: Path, **values: Any) -> Settings:
    (tmp_path / "migrations").mkdir(exist_ok=True)
    return Settings(migrations_folder=tmp_path / "migrations", scratch_folder=tmp_path, **values)


@pytest.mark.parametrize(
    ("values", "missing"),
    [
        ({"database_url": DATABASE}, "DATABASE_URL needs MIGRATE_CKPT_RESULTS_URL"),
        ({"results_url": BUCKET}, "RESULTS_URL needs MIGRATE_CKPT_DATABASE_URL"),
    ],
)
def test_database_and_bucket_go_together(
    tmp_path: Path, values: dict[str, str], missing: str
) -> None:
    with pytest.raises(SettingsError, match=missing):
        create_app(settings(tmp_path, **values))


def test_worker_needs_a_database_that_is_shared(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="A worker takes its jobs from a database"):
        check_settings(settings(tmp_path, data_folder=tmp_path / "data"), "worker")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("DATABASE_URL", "mysql://me:hunter2@db/jobs", "postgresql://user@host"),
        ("RESULTS_URL", "file:///shared", "s3://, gs:// or az://"),
        ("RESULTS_URL", "bucket", "it is no bucket"),
    ],
)
def test_what_is_no_database_or_bucket_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(f"MIGRATE_CKPT_{name}", value)

    with pytest.raises(SettingsError) as caught:
        read_settings()

    assert message in str(caught.value)
    assert f"MIGRATE_CKPT_{name}" in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", [DATABASE, "postgresql://me:hunter2@host:port/jobs"])
def test_database_that_cannot_be_reached_is_said_without_its_password(
    tmp_path: Path, url: str
) -> None:
    pytest.importorskip("dbos", reason="the extra [jobs] is not installed")
    app = create_app(settings(tmp_path, database_url=url, results_url=BUCKET))

    with (
        pytest.raises(SettingsError, match="DATABASE_URL cannot be used: ") as caught,
        started(app),
    ):
        pass

    assert "hunter2" not in str(caught.value)


def test_bucket_that_cannot_be_used_is_said(tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("dbos", reason="the extra [jobs] is not installed")
    monkeypatch.setattr("app.jobs.opening._check_database", lambda settings: None)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setattr("app.storage.buckets._RETRY", {"max_retries": 0})
    app = create_app(settings(tmp_path, database_url=DATABASE, results_url=BUCKET))

    with (
        pytest.raises(
            SettingsError, match="RESULTS_URL=s3://bucket/folder cannot be used"
        ) as caught,
        started(app),
    ):
        pass

    assert "hunter2" not in str(caught.value)


def test_how_many_there_may_be_is_said(tmp_path: Path) -> None:
    shared = settings(tmp_path, database_url=DATABASE, results_url=BUCKET)

    assert describe_replicas(settings(tmp_path)).startswith("any number: no jobs")
    assert describe_replicas(settings(tmp_path, data_folder=tmp_path)).startswith("one replica")
    assert describe_replicas(shared).endswith("results in s3://bucket/folder")

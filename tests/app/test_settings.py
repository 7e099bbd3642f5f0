from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from app.settings import PREFIX, Settings, SettingsError, read_settings


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Nothing of ours in the environment, and a folder named migrations to stand in."""
    for name in list(os.environ):
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)
    (tmp_path / "migrations").mkdir()
    monkeypatch.chdir(tmp_path)
    return monkeypatch


def test_without_variables_the_defaults_hold(tmp_path: Path) -> None:
    settings = read_settings()

    assert settings.migrations_folder == tmp_path / "migrations"
    assert settings.policy == "skip-missed"
    assert settings.max_upload_bytes == 64 * 2**30
    assert not settings.allow_anonymous


def test_sizes_may_have_units(environment: pytest.MonkeyPatch) -> None:
    environment.setenv(f"{PREFIX}RUN_MEMORY_BYTES", "2GiB")

    assert read_settings().run_memory_bytes == 2**31


def test_empty_variable_counts_as_absent(environment: pytest.MonkeyPatch) -> None:
    environment.setenv(f"{PREFIX}POLICY", "")

    assert read_settings().policy == "skip-missed"


def test_origins_are_a_list_with_commas(environment: pytest.MonkeyPatch) -> None:
    environment.setenv(f"{PREFIX}CORS_ORIGINS", "https://a.example, http://b.example:8080")

    assert read_settings().cors_origins == ("https://a.example", "http://b.example:8080")


def test_tokens_are_shown_nowhere(environment: pytest.MonkeyPatch) -> None:
    environment.setenv(f"{PREFIX}TOKENS", "ci:read:hunter2")

    assert "hunter2" not in repr(read_settings())


@pytest.mark.parametrize(
    ("misspelt", "nearest"),
    [
        ("POLCY", "POLICY"),
        ("MIGRATION_FOLDER", "MIGRATIONS_FOLDER"),
        ("MAX_UPLOAD_SIZE", "MAX_UPLOAD_BYTES"),
        ("RUN_TIMEOUT", "RUN_TIMEOUT_SECONDS"),
        ("policy_", "POLICY"),
    ],
)
def test_misspelt_variable_is_refused_with_the_nearest_right_name(
    environment: pytest.MonkeyPatch, misspelt: str, nearest: str
) -> None:
    environment.setenv(PREFIX + misspelt, "1")

    with pytest.raises(SettingsError) as caught:
        read_settings()

    assert PREFIX + misspelt in str(caught.value)
    assert f"{PREFIX}{nearest}?" in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "SERVICE_HOST",
        "SERVICE_PORT",
        "SERVICE_PORT_HTTP",
        "PORT",
        "PORT_8000_TCP",
        "PORT_8000_TCP_ADDR",
        "PORT_8000_TCP_PROTO",
        "METRICS_SERVICE_HOST",
        "METRICS_SERVICE_PORT",
        "METRICS_PORT",
        "METRICS_PORT_9000_TCP_PORT",
    ],
)
def test_what_kubernetes_injects_is_no_setting(environment: pytest.MonkeyPatch, name: str) -> None:
    environment.setenv(PREFIX + name, "tcp://10.0.0.1:8000")

    assert read_settings() == Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MIGRATIONS_FOLDER", "/nowhere"),
        ("SCRATCH_FOLDER", "/nowhere"),
        ("MAX_UPLOAD_BYTES", "many"),
        ("MAX_UPLOAD_BYTES", "0"),
        ("MAX_CONCURRENT_RUNS", "0"),
        ("RUN_TIMEOUT_SECONDS", "-1"),
        ("RUN_TIMEOUT_SECONDS", "inf"),
        ("RUN_MEMORY_BYTES", "0"),
        ("POLICY", "run-all"),
        ("ALLOWED_GLOBALS_FILE", "/nowhere"),
        ("ALLOWED_GLOBALS_FILE", sys.executable),
        ("ALLOW_ANONYMOUS", "perhaps"),
        ("TOKENS_FILE", "/nowhere"),
        ("CORS_ORIGINS", "https://a.example/path"),
    ],
)
def test_value_that_cannot_be_used_is_refused_and_named(
    environment: pytest.MonkeyPatch, name: str, value: str
) -> None:
    environment.setenv(PREFIX + name, value)

    with pytest.raises(SettingsError, match=f"{PREFIX}{name}={value} cannot be used"):
        read_settings()

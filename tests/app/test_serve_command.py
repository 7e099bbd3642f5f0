from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from app import __main__ as command
from app.settings import Settings, SettingsError


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(migrations_folder=tmp_path)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_no_permission(settings: Settings, host: str) -> None:
    command.refuse_open_address(host, settings)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "example.org"])
def test_open_address_is_refused_with_the_ways_out(settings: Settings, host: str) -> None:
    with pytest.raises(SettingsError) as caught:
        command.refuse_open_address(host, settings)

    assert "HOST=127.0.0.1" in str(caught.value)
    assert "MIGRATE_CKPT_ALLOW_ANONYMOUS=true" in str(caught.value)


def test_open_address_is_allowed_by_the_setting(tmp_path: Path) -> None:
    settings = Settings(migrations_folder=tmp_path, allow_anonymous=True)

    command.refuse_open_address("0.0.0.0", settings)


@pytest.mark.parametrize("port", ["http", "-1", "65536", "8000.0"])
def test_port_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    monkeypatch.setenv("PORT", port)

    with pytest.raises(SettingsError, match=f"PORT={port}"):
        command.read_address()


def test_refusal_is_one_line_and_status_two(tmp_path: Path) -> None:
    (tmp_path / "migrations").mkdir()

    done = subprocess.run(
        [sys.executable, "-m", "app", "serve"],
        env={"HOST": "0.0.0.0", "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "MIGRATE_CKPT_ALLOW_ANONYMOUS" in done.stderr

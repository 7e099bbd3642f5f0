from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from app import __main__ as command
from app.access import read_tokens
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
    assert "MIGRATE_CKPT_TOKENS_FILE" in str(caught.value)


@pytest.mark.parametrize("tokens", [{"tokens": "ci:read:x"}, {"tokens_file": __file__}])
def test_open_address_is_allowed_where_tokens_are_asked_for(
    tmp_path: Path, tokens: dict[str, str]
) -> None:
    command.refuse_open_address("0.0.0.0", Settings(migrations_folder=tmp_path, **tokens))


def test_open_address_is_allowed_by_the_setting(tmp_path: Path) -> None:
    settings = Settings(migrations_folder=tmp_path, allow_anonymous=True)

    command.refuse_open_address("0.0.0.0", settings)


@pytest.mark.parametrize("port", ["http", "-1", "65536", "8000.0"])
def test_port_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    monkeypatch.setenv("PORT", port)

    with pytest.raises(SettingsError, match=f"PORT={port}"):
        command.read_address(8000)


def run(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        env={"PYTHONPATH": str(Path(__file__).parents[2]), **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_refusal_is_one_line_and_status_two(tmp_path: Path) -> None:
    (tmp_path / "migrations").mkdir()

    done = run("serve", folder=tmp_path, HOST="0.0.0.0")

    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "MIGRATE_CKPT_ALLOW_ANONYMOUS" in done.stderr


def test_broken_migration_is_one_line_and_status_two(tmp_path: Path) -> None:
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations" / "0001_x.py").write_text("def handle(ckpt:")

    done = run("serve", folder=tmp_path)

    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "0001_x.py" in done.stderr


@pytest.mark.parametrize(
    "asked",
    [{"OTEL_TRACES_EXPORTER": "zipkin"}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "localhost:4318"}],
    ids=str,
)
def test_spans_that_cannot_be_sent_are_one_line_and_status_two(
    tmp_path: Path, asked: dict[str, str]
) -> None:
    (tmp_path / "migrations").mkdir()

    done = run("serve", folder=tmp_path, **asked)

    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(*asked)


def test_new_token_goes_beside_the_line_for_the_list(tmp_path: Path) -> None:
    done = run("token", "ci", "--scopes", "read", folder=tmp_path)

    (token,) = read_tokens(done.stdout)
    assert (token.name, token.scopes) == ("ci", {"read"})
    assert done.stderr.splitlines()[-1].startswith("mck_")
    assert "mck_" not in done.stdout


@pytest.mark.parametrize("arguments", [("c i",), ("ci", "--scopes", "write")])
def test_token_that_cannot_be_is_refused(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = run("token", *arguments, folder=tmp_path)

    assert (done.returncode, done.stdout) == (2, "")
    assert "cannot be" in done.stderr

"""Completion: what a shell is given knows the words, the options, and where a file is meant."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from migrate_ckpt.cli import main


def completed(script: Path, folder: Path, *words: str) -> list[str]:
    """Return what bash offers for the last of these words."""
    line = " ".join(words)
    program = f"""
    shopt -s progcomp; source {script}
    COMP_WORDS=({line!s} {"''" if words[-1] == "" else ""}); COMP_CWORD={len(words) - 1}
    COMP_LINE='{line}'; COMP_POINT={len(line)}; COMP_TYPE=9
    $(complete -p migrate-ckpt | sed 's/.*-F \\([^ ]*\\).*/\\1/') migrate-ckpt '{words[-1]}' '{words[-2]}'
    printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "-c", program], cwd=folder, capture_output=True, text=True, timeout=30
    )
    return done.stdout.split()


@pytest.fixture
def script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    assert main(["completion", "bash"]) == 0
    path = tmp_path / "completion.bash"
    path.write_text(capsys.readouterr().out)
    return path


def test_words_and_options_are_completed(script: Path, tmp_path: Path) -> None:
    assert completed(script, tmp_path, "migrate-ckpt", "rev") == ["revert"]
    assert "--keep-undo" in completed(script, tmp_path, "migrate-ckpt", "run", "--k")


def test_files_are_completed_where_one_is_meant(script: Path, tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").touch()

    assert "model.ckpt" in completed(script, tmp_path, "migrate-ckpt", "plan", "mod")


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_each_shell_is_given_the_words(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0

    assert "keep-undo" in capsys.readouterr().out

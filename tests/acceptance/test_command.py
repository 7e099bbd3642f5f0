"""The command as a person meets it: at a terminal, and with Ctrl-C."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.acceptance

COMMAND = [sys.executable, "-m", "migrate_ckpt.cli"]
COUNT = 40
MIGRATION = '''"""Rename the head."""
import pathlib, time


def handle(ckpt):
    ckpt["new"] = ckpt.pop("old")
    if ckpt["number"] == {slow}:
        pathlib.Path({started!r}).touch()
        time.sleep(60)
    return ckpt
'''


@pytest.fixture
def forty(tmp_path: Path) -> Path:
    (tmp_path / "runs").mkdir()
    for number in range(COUNT):
        torch.save({"old": torch.ones(8), "number": number}, tmp_path / f"runs/{number:02}.ckpt")
    return tmp_path


def write_migration(folder: Path, *, slow: int = -1) -> Path:
    (folder / "migrations").mkdir(exist_ok=True)
    started = folder / "started"
    text = MIGRATION.format(slow=slow, started=str(started))
    (folder / "migrations/0001_rename.py").write_text(text)
    return started


def at_terminal(
    arguments: list[str], folder: Path, environment: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run the command with a terminal as its output and its standard error; gives what the terminal got."""
    main_end, terminal = pty.openpty()
    clean = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=folder,
        env={**clean, "TERM": "xterm-256color", **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    shown = b""
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if not select.select([main_end], [], [], 1)[0]:
                continue
            try:
                data = os.read(main_end, 1 << 16)
            except OSError:
                # The terminal's other end is closed: the process has ended.
                break
            if not data:
                break
            shown += data
        return process.wait(timeout=20), shown.decode()
    finally:
        process.kill()
        process.wait()
        os.close(main_end)


def test_forty_files_show_their_progress_at_a_terminal_and_end_with_a_summary(forty: Path) -> None:
    write_migration(forty)

    code, shown = at_terminal(["run", "runs", "--output-dir", "new"], forty)

    assert code == 0
    assert f"/{COUNT}" in shown
    assert shown.rstrip().splitlines()[-1].endswith(f"{COUNT} files: {COUNT} migrated")
    assert len(list((forty / "new").iterdir())) == COUNT


def test_nothing_but_the_lines_reaches_a_pipe(forty: Path) -> None:
    write_migration(forty)

    done = subprocess.run(
        [*COMMAND, "run", "runs", "--output-dir", "new"], cwd=forty, capture_output=True, text=True
    )

    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert done.stdout.splitlines()[-1] == f"{COUNT} files: {COUNT} migrated"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_an_interrupt_says_what_was_done_and_the_next_call_does_the_rest(
    forty: Path, number: signal.Signals
) -> None:
    started = write_migration(forty, slow=25)
    command = [*COMMAND, "run", "runs", "--output-dir", "new", "--report", "report.json"]

    with subprocess.Popen(
        command, cwd=forty, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 120
        while not started.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        _, error = process.communicate(timeout=60)

    assert process.returncode == 130
    assert error == f"interrupted; {COUNT} files: 25 migrated, 15 not done\n"
    assert sorted(os.listdir(forty / "new")) == [f"{number:02}.ckpt" for number in range(25)]
    report = json.loads((forty / "report.json").read_text())
    assert (report["interrupted"], report["not_done"], report["exit_code"]) == (True, 15, 130)

    write_migration(forty, slow=-1)
    done = subprocess.run(command, cwd=forty, capture_output=True, text=True)

    assert done.returncode == 0
    assert len(os.listdir(forty / "new")) == COUNT

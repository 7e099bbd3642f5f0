"""Sends files to a worker process that may be killed, and starts another one when it has died."""

from __future__ import annotations

import json
import selectors
import subprocess
import sys
from pathlib import Path
from typing import Any

START_SECONDS = 120
# Of a clock on the wall: it tells a file that is never done from one on a busy machine.
FILE_SECONDS = 120


class Worker:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None

    def try_file(self, path: Path) -> dict[str, Any]:
        """What became of a file; `{"died": ...}` where it took the worker with it, or too long."""
        process = self._process or self._start()
        assert process.stdin is not None
        process.stdin.write(f"{path}\n")
        process.stdin.flush()
        line = self._read(process, FILE_SECONDS)
        if not line:
            return {
                "died": f"it ended with {self.stop()}, or did not end in {FILE_SECONDS} seconds"
            }
        found: dict[str, Any] = json.loads(line)
        return found

    def stop(self) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        process.kill()
        process.communicate()
        return process.returncode

    def _start(self) -> subprocess.Popen[str]:
        self._process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-m", "tests.attacks.worker", self._folder],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._read(self._process, START_SECONDS) == "ready\n"
        return self._process

    def _read(self, process: subprocess.Popen[str], seconds: float) -> str:
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            return process.stdout.readline() if selector.select(seconds) else ""

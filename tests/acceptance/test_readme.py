"""The README's commands, as a reader copies them, beside a service that runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.acceptance.conftest import Service, running_service

pytestmark = pytest.mark.acceptance
ROOT = Path(__file__).resolve().parent.parent.parent
BLOCKS = re.findall(
    r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE
)
JOB = "18eb2d32…"
# What starts a service or a container, or needs a bucket: each has tests of its own.
ELSEWHERE = re.compile(r"^(export .*|(\w+=\S+ )?make .*|docker compose .*)$", re.MULTILINE)
MODEL = """
from torch import nn, ones

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 1, bias=False)

def build():
    return Model()
"""


def commands(block: str) -> str:
    """What is left of a block to be run here."""
    without_remarks = re.sub(r"\s+# .*$", "", block, flags=re.MULTILINE)
    return ELSEWHERE.sub("", without_remarks).strip()


RUN_HERE = [text for text in map(commands, BLOCKS) if text and "s3://" not in text]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    pytest.importorskip("dbos", reason="the extra [jobs] is not installed")
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(ROOT / "migrations", folder / "migrations")
    (folder / "mypackage").mkdir()
    (folder / "mypackage" / "model.py").write_text(MODEL)
    (folder / "runs").mkdir()
    ckpt = {
        "state_dict": {"model.head.weight": torch.ones(1, 2)},
        "hyper_parameters": Namespace(lr=0.1),
    }
    for path in (folder / "old.ckpt", folder / "runs" / "a.ckpt"):
        torch.save(ckpt, path)
    (folder / ".venv" / "bin").mkdir(parents=True)
    python = folder / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    with running_service(folder, MIGRATE_CKPT_DATA_FOLDER=str(folder / "data")) as service:
        yield service


def test_there_are_commands_to_run() -> None:
    text = "\n".join(RUN_HERE)
    assert text.count("curl ") >= 5
    assert text.count("migrate-ckpt ") >= 5


@pytest.mark.parametrize(
    "number", range(len(RUN_HERE)), ids=lambda n: RUN_HERE[n].split("\n")[-1][:60]
)
def test_commands_do_what_they_say(number: int, service: Service) -> None:
    folder = service.log.parent
    (folder / "new.ckpt").unlink(missing_ok=True)
    text = RUN_HERE[number].replace("localhost:8000", service.url)
    # That there is something to run is what its exit code says.
    text = re.sub(r"^(migrate-ckpt plan .*)$", r"\1 || [ $? = 1 ]", text, flags=re.MULTILINE)
    if JOB in text:
        first, _, rest = text.partition("\n")
        said = run(first, folder)
        found = re.search(r"location: /jobs/(\w+)", said, re.IGNORECASE)
        assert found, said
        wait = f'curl -s {service.url}/jobs/{found[1]} -H "Prefer: wait=30"\n'
        text = wait + rest.replace(JOB, found[1])
    run(text, folder)
    if "-o new.ckpt" in text:
        assert (folder / "new.ckpt").read_bytes()[:2] == b"PK"


def run(text: str, folder: Path) -> str:
    programs = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "TOKEN": "none"}
    # A module of the folder is found as it is by a program of the reader's.
    environment["PYTHONPATH"] = f"{folder}:{ROOT}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder,
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout

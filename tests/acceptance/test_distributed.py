"""A checkpoint that two processes saved together, each its half of every tensor."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from migrate_ckpt import migrate_file

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
]

SAVE = """
import os, sys
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

rank, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, RANK=str(rank), WORLD_SIZE="2")
dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
whole = {name: torch.arange(48.0).reshape(8, 6) + n for n, name in enumerate(("a.w", "b.w", "c.w"))}
parts = {name: distribute_tensor(tensor, mesh, [Shard(n % 2)]) for n, (name, tensor) in enumerate(whole.items())}
dcp.save({"model": parts, "epoch": 3}, checkpoint_id=folder)
dist.barrier()
# Torch's threads now and then abort a process that takes them down ("terminate called without an active exception").
os._exit(0)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-c", SAVE]
    processes = [
        subprocess.Popen([*command, str(rank), port, tmp_path / "old"]) for rank in range(2)
    ]
    assert [process.wait(120) for process in processes] == [0, 0]
    return tmp_path / "old"


def test_halves_stay_where_they_are_and_are_joined_only_where_they_are_read(
    folder: Path, tmp_path: Path
) -> None:
    migrations = tmp_path / "migrations"
    migrations.mkdir()
    (migrations / "0001.py").write_text(
        "from migrate_ckpt.operations import rename, transpose\n\n"
        'operations = [rename("a.w", "x.w"), transpose("b.w")]\n'
    )
    files = {path.name: path.read_bytes() for path in folder.glob("*.distcp")}
    assert len(files) == 2

    report = migrate_file(folder, folder, folder=migrations)

    assert report.target is not None
    assert report.target["shards"] == 3
    assert all((folder / name).read_bytes() == data for name, data in files.items())
    places = dcp.FileSystemReader(folder).read_metadata().storage_data
    assert sum(index.fqn == "model.x.w" for index in places) == 2
    assert sum(index.fqn == "model.b.w" for index in places) == 1
    loaded = {
        "model": {"x.w": torch.zeros(8, 6), "b.w": torch.zeros(6, 8), "c.w": torch.zeros(8, 6)}
    }
    dcp.load(loaded, checkpoint_id=folder, no_dist=True)
    whole = torch.arange(48.0).reshape(8, 6)
    assert torch.equal(loaded["model"]["x.w"], whole)
    assert torch.equal(loaded["model"]["b.w"], (whole + 1).t())
    assert torch.equal(loaded["model"]["c.w"], whole + 2)

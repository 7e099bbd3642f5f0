"""Migrations that reach for what is not theirs: each is refused, and goes on to give its answer."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch

from tests.acceptance.conftest import Service, is_alive, running_service, sleeping_run, write_sets

pytestmark = pytest.mark.acceptance

# For each layer of the sandbox, what a migration tries that it keeps from. `arg` comes with the checkpoint.
ATTEMPTS = {
    "network": {
        "opens a socket": "socket.socket()",
        "opens a socket of IPv6": "socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)",
        "opens a socket of this machine": "socket.socket(socket.AF_UNIX)",
        "opens a socket to the kernel": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
        "pairs sockets that send anywhere": "socket.socketpair(type=socket.SOCK_DGRAM)",
        "connects a socket it has": "socket.socketpair()[0].connect('/dev/log')",
    },
    "system_calls": {
        "traces": "call(101, 117, 0, 0, 0, 0)",
        "reads another's memory": "call(310, 270, os.getpid(), 0, 0, 0, 0, 0)",
        "goes round by io_uring": "call(425, 425, 1, 0)",
        "loads code into the kernel": "call(321, 280, 0, 0, 0)",
        "becomes master of a namespace": "call(272, 97, 0x10000000)",
        "clones into a namespace": "call(56, 220, 0x10000011, 0, 0, 0, 0)",
        "enters a namespace": "call(308, 268, 0, 0)",
        "mounts": "call(165, 40, b'none', b'.', b'tmpfs', 0, 0)",
        "changes its root": "os.chroot('.')",
        "looks for keys": "call(250, 219, 0, 0)",
        "holds memory that is nobody's": "os.memfd_create('it')",
        "leaves memory behind": "call(29, 194, 0, 4096, 0o1600)",
        "outlives its watcher": "call(157, 167, 1, 0, 0, 0, 0)",
        "starts another kernel": "call(246, 104, 0, 0, 0, 0)",
    },
    "files": {
        "reads who the users are": "open('/etc/passwd').read()",
        "lists the root": "os.listdir('/')",
        "lists the requests": "os.listdir('..')",
        "reads a file of the operator": "open(arg('readable')).read()",
        "reads what its parent was told": "open('/proc/1/environ').read()",
        "writes elsewhere": "open(os.path.join(arg('open'), 'it'), 'w')",
        "writes to a file of the operator": "open(arg('writable'), 'a')",
        "cuts a file of the operator": "os.truncate(arg('writable'), 0)",
        "removes a file of the operator": "os.unlink(arg('writable'))",
        "goes there by a link": "(os.symlink(arg('readable'), 'it'), open('it').read())",
        "changes the migrations": "open(__file__, 'a')",
        "reads another request's upload": "open(arg('upload'), 'rb').read()",
        "lists another request's folder": "os.listdir(os.path.dirname(arg('upload')))",
        "runs a program": "subprocess.run([sys.executable, '-c', ''])",
        "shares memory by name": "shared_memory.SharedMemory(create=True, size=10)",
    },
    "user": {
        "becomes root": "os.setuid(0)",
        "changes its upload": "open('upload', 'r+b')",
        "gives a file away": "(open('it', 'w').close(), os.chown('it', 0, 0))",
    },
    "processes": {
        "kills the web process": "os.kill(int(arg('web')), signal.SIGKILL)",
        "kills the fork server": "os.kill(int(arg('fork_server')), signal.SIGKILL)",
        "kills another run": "os.kill(int(arg('run')), signal.SIGKILL)",
        "kills all": "os.kill(-1, signal.SIGKILL)",
    },
    "privileges": {
        "sets the clock": "time.clock_settime(time.CLOCK_REALTIME, time.time())",
        "makes a device": "os.mknod('it', 0o600 | stat.S_IFBLK, os.makedev(1, 0))",
        "goes before others": "os.nice(-5)",
    },
}

MIGRATION = """
import ctypes, os, platform, signal, socket, stat, subprocess, sys, time
from multiprocessing import shared_memory

def call(on_x86_64, on_arm64, *arguments):
    number = on_x86_64 if platform.machine() == "x86_64" else on_arm64
    if ctypes.CDLL(None, use_errno=True).syscall(number, *arguments) == -1:
        raise OSError(ctypes.get_errno(), "refused")

def handle(ckpt):
    def arg(name):
        return ckpt["arguments"][name]

    try:
        {attempt}
    except (PermissionError, ProcessLookupError):
        ckpt["came of it"] = "refused"
    except OSError as error:
        # The kernel has looked at it: it would not refuse another like it.
        ckpt["came of it"] = repr(error)
    else:
        ckpt["came of it"] = "done"
    return ckpt
"""

ROWS = [
    pytest.param(layer, what.replace(" ", "-").replace("'", ""), id=what)
    for layer, attempts in ATTEMPTS.items()
    for what in attempts
]


@pytest.fixture(scope="module")
def operators() -> Iterator[Path]:
    """What belongs to the operator; to everybody by its permissions, so that only the sandbox protects it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "readable").write_text("hunter2")
        (folder / "writable").write_text("hunter2")
        (folder / "writable").chmod(0o666)
        (folder / "open").mkdir()
        (folder / "open").chmod(0o777)
        yield folder


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    write_sets(folder / "migrations")
    for attempts in ATTEMPTS.values():
        for what, attempt in attempts.items():
            target = folder / "migrations" / what.replace(" ", "-").replace("'", "")
            target.mkdir()
            (target / "0001_first.py").write_text(MIGRATION.format(attempt=attempt))
    with running_service(folder, MIGRATE_CKPT_MAX_CONCURRENT_RUNS="2") as service:
        yield service


@pytest.fixture(scope="module")
def layers(service: Service) -> dict[str, str]:
    found: dict[str, str] = httpx.get(f"{service.url}/readyz?verbose").json()["layers"]
    return found


def test_every_layer_is_reported(layers: dict[str, str]) -> None:
    assert set(layers) == set(ATTEMPTS)
    assert {what.partition(":")[0] for what in layers.values()} <= {"in force", "not available"}


@pytest.fixture(scope="module")
def sleeping(service: Service, old: Path) -> Iterator[dict[str, str]]:
    """Another request whose run goes on all the time."""
    with sleeping_run(service, old):
        (run,) = service.runs()
        (upload,) = service.scratch.glob("migrate-ckpt-*/run-*/upload")
        yield {"run": str(run), "upload": str(upload)}


@pytest.mark.parametrize(("layer", "set_name"), ROWS)
def test_migration_is_refused_what_is_not_its_own(
    service: Service,
    layers: dict[str, str],
    sleeping: dict[str, str],
    operators: Path,
    layer: str,
    set_name: str,
) -> None:
    if not layers[layer].startswith("in force"):
        pytest.skip(f"the sandbox lacks {layer} here: {layers[layer]}")
    arguments = {
        **sleeping,
        **{name: str(operators / name) for name in ("readable", "writable", "open")},
        "web": str(service.pid),
        "fork_server": str(service.fork_server()),
    }
    body = io.BytesIO()
    torch.save({"arguments": arguments}, body)

    answer = httpx.post(f"{service.url}/migrate?set={set_name}", content=body.getvalue())

    assert answer.status_code == 200, answer.text
    ckpt = torch.load(io.BytesIO(answer.content), weights_only=True)
    assert ckpt["came of it"] == "refused"
    assert is_alive(int(sleeping["run"]))
    assert (operators / "writable").read_text() == "hunter2"
    assert list((operators / "open").iterdir()) == []


def test_migration_that_changes_weights_in_place_is_still_noticed(
    service: Service, old: Path
) -> None:
    answer = httpx.post(f"{service.url}/migrate?set=writes-in-place", content=old.read_bytes())

    before = torch.load(old, weights_only=True)["state_dict"]
    after = torch.load(io.BytesIO(answer.content), weights_only=True)["state_dict"]
    assert torch.equal(after["model.layer0.weight"], before["model.layer0.weight"] + 1)
    assert torch.equal(after["model.layer1.weight"], before["model.layer1.weight"])

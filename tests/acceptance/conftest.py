"""A real service in a process of its own, on a free port of the loopback, ended by its process id."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import torch

from app.waiting_child import WAITING_NAME

START_SECONDS = 60
STOP_SECONDS = 20
# A second is what is promised, and what an idle machine shows; this is for one that stalls.
AT_ONCE_SECONDS = 10

MEMORY_BYTES = 200 * 2**20
MAX_UPLOAD_BYTES = 1200 * 2**20

# What a well-behaved set does, and sets that do what no migration should, each in its own way.
SETS = {
    "": """
        def handle(ckpt):
            weights = ckpt["state_dict"]
            for key in list(weights):
                weights[key.removeprefix("model.")] = weights.pop(key)
            return ckpt
    """,
    "fails": """
        def handle(ckpt):
            raise KeyError("optimizer")
    """,
    "sleeps": """
        import time

        def handle(ckpt):
            open("begun", "wb").close()
            time.sleep(60)
    """,
    "eats": """
        def handle(ckpt):
            eaten = []
            while True:
                eaten.append(bytearray(2**20))
    """,
    "crashes": """
        import ctypes

        def handle(ckpt):
            ctypes.string_at(0)
    """,
    "exits": """
        import os

        def handle(ckpt):
            os._exit(0)
    """,
    "prints": """
        import sys

        def handle(ckpt):
            for _ in range(100_000):
                print("a migration speaks")
            print("its last words", file=sys.stderr)
            return ckpt
    """,
    "chatters": """
        import os

        def handle(ckpt):
            for descriptor in range(3, 64):
                try:
                    os.write(descriptor, b"x" * 2**20)
                except OSError:
                    pass
            return ckpt
    """,
    "forks": """
        import os, time

        def handle(ckpt):
            if os.fork() == 0:
                time.sleep(60)
                os._exit(0)
            return ckpt
    """,
    "escapes": """
        import os, time

        def handle(ckpt):
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    time.sleep(60)
                os._exit(0)
            return ckpt
    """,
    "breeds": """
        import os, time

        def handle(ckpt):
            while True:
                if os.fork() == 0:
                    time.sleep(60)
    """,
    "eats-in-children": """
        import os, time

        def handle(ckpt):
            for _ in range(5):
                if os.fork() == 0:
                    eaten = bytearray(b"x") * (60 * 2**20)
                    time.sleep(60)
            time.sleep(60)
    """,
    "shares-with-children": """
        import os, time

        def handle(ckpt):
            shared = bytearray(b"x") * (120 * 2**20)
            children = [os.fork() for _ in range(1)]
            if 0 in children:
                time.sleep(0.3)
                os._exit(0)
            os.wait()
            return ckpt
    """,
    "fills": """
        import os

        def handle(ckpt):
            number = 0
            while True:
                with open(f"{number}", "wb") as file:
                    file.write(bytes(2**24))
                number += 1
    """,
    "fills-nameless": """
        import os

        def handle(ckpt):
            files = []
            while True:
                files.append(open("it", "wb"))
                os.unlink("it")
                files[-1].write(bytes(2**24))
                files[-1].flush()
    """,
    "fills-one-file": """
        def handle(ckpt):
            with open("it", "wb") as file:
                while True:
                    file.write(bytes(2**24))
    """,
    "litters": """
        def handle(ckpt):
            number = 0
            while True:
                open(f"{number}", "wb").close()
                number += 1
    """,
    "digs": """
        import os

        def handle(ckpt):
            for _ in range(900):
                os.mkdir("d")
                os.chdir("d")
            os.chmod(".", 0)
            return ckpt
    """,
    "looks": """
        import json, os, sys

        def handle(ckpt):
            ckpt["seen"] = json.dumps({
                "environment": dict(os.environ),
                "folder": os.getcwd(),
                "modules": sorted(sys.modules),
                "pid": os.getpid(),
                "session": os.getsid(0),
            })
            return ckpt
    """,
    "writes-in-place": """
        def handle(ckpt):
            ckpt["state_dict"]["model.layer0.weight"] += 1
            return ckpt
    """,
    "wipes": """
        import os

        def handle(ckpt):
            for name in os.listdir():
                os.unlink(name)
            return ckpt
    """,
}


@dataclass
class Service:
    """A running service: its process, its address, and where it keeps its scratch."""

    process: subprocess.Popen[str]
    url: str
    scratch: Path
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def scratch_folders(self) -> list[str]:
        """The folders of requests that are not over."""
        return [path.name for path in self.scratch.glob("migrate-ckpt-*/run-*")]

    def begun_sleeps(self) -> set[Path]:
        """What the migrations that sleep have left as a sign that they have begun."""
        return set(self.scratch.glob("migrate-ckpt-*/run-*/begun"))

    def fork_server(self) -> int:
        (pid,) = children(self.pid)
        return pid

    def runs(self) -> list[int]:
        """The children of the fork server, but for one that waits for its run."""
        return [pid for pid in children(self.fork_server()) if not is_waiting(pid)]

    def is_idle(self) -> bool:
        """Whether nothing runs, and a child waits for what will run next."""
        found = children(self.fork_server())
        return len(found) == 1 and is_waiting(found[0])


def children(pid: int) -> list[int]:
    """The processes that this one is the parent of, zombies included."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            after_name = path.read_text().rpartition(")")[2].split()
            if int(after_name[1]) == pid:
                found.append(int(path.parent.name))
    return found


def is_waiting(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip() == WAITING_NAME
    return False


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def eventually(condition: Callable[[], object], *, seconds: float = 30) -> bool:
    """Whether this becomes true within so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return bool(condition())


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def running_service(
    folder: Path, *, prefix: Sequence[str] = (), command: str = "serve", **environment: str
) -> Iterator[Service]:
    """Start a service, or a worker, on the migrations in this folder, and stop it again."""
    port, log, scratch = free_port(), folder / "log", folder / "scratch"
    scratch.mkdir(exist_ok=True)
    with log.open("w") as output:
        process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "app", command],
            env={
                **os.environ,
                "PORT": str(port),
                "MIGRATE_CKPT_MIGRATIONS_FOLDER": str(folder / "migrations"),
                "MIGRATE_CKPT_SCRATCH_FOLDER": str(scratch),
                **environment,
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            text=True,
        )
    scratch = Path(environment.get("MIGRATE_CKPT_SCRATCH_FOLDER", scratch))
    service = Service(process, f"http://127.0.0.1:{port}", scratch, log)
    try:
        assert eventually(lambda: answers(service) or process.poll(), seconds=START_SECONDS)
        assert process.poll() is None, log.read_text()
        yield service
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def connect(service: Service) -> socket.socket:
    host, port = service.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def head(path: str, length: int) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode()


@contextlib.contextmanager
def sleeping_run(service: Service, old: Path) -> Iterator[None]:
    """A request whose migration has begun and does not end; the client hangs up at the end of the block."""
    before = service.begun_sleeps()
    with connect(service) as connection:
        body = old.read_bytes()
        connection.sendall(head("/migrate?set=sleeps", len(body)) + body)
        assert eventually(lambda: service.begun_sleeps() - before)
        yield


def leave_during_run(service: Service, old: Path) -> None:
    with sleeping_run(service, old):
        pass


def answers(service: Service) -> bool:
    try:
        return httpx.get(f"{service.url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def write_sets(folder: Path) -> None:
    for name, code in SETS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "0001_first.py").write_text(textwrap.dedent(code))


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    write_sets(folder / "migrations")
    with running_service(
        folder,
        MIGRATE_CKPT_RUN_TIMEOUT_SECONDS="2",
        MIGRATE_CKPT_RUN_MEMORY_BYTES=str(MEMORY_BYTES),
        MIGRATE_CKPT_MAX_UPLOAD_BYTES=str(MAX_UPLOAD_BYTES),
        MIGRATE_CKPT_MAX_CONCURRENT_RUNS="2",
        SECRET_OF_THE_OPERATOR="hunter2",
        # What Kubernetes adds beside a service of our name.
        MIGRATE_CKPT_SERVICE_HOST="10.0.0.1",
        MIGRATE_CKPT_PORT_8000_TCP="tcp://10.0.0.1:8000",
    ) as service:
        yield service


@pytest.fixture(scope="session")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose weights have the prefix that the default set takes away."""
    path = tmp_path_factory.mktemp("checkpoints") / "old.ckpt"
    weights = {f"model.layer{i}.weight": torch.arange(4096.0).view(64, 64) + i for i in range(3)}
    torch.save({"state_dict": weights, "epoch": 3}, path)
    return path

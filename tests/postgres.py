"""A PostgreSQL server of a test's own, on a free port of the loopback, in a folder that goes with it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.acceptance.conftest import free_port

# The server refuses to run as root.
USER = "postgres"


@dataclass
class Postgres:
    """A server; each database of it is made when its URL is asked for."""

    folder: Path
    port: int

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories="
        self._control("start", "-w", "-t", "60", "-o", options, "-l", str(self.folder / "log"))

    def stop(self, mode: str = "fast") -> None:
        self._control("stop", "-m", mode)

    def new_database(self, name: str) -> str:
        """Make a database, and return its URL."""
        import psycopg

        with psycopg.connect(self._url("postgres"), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[call-overload]
        return self._url(name)

    def _url(self, name: str) -> str:
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{name}"

    def _control(self, *arguments: str) -> None:
        _run("pg_ctl", "-D", str(self.folder / "data"), *arguments)


@contextlib.contextmanager
def running_postgres() -> Iterator[Postgres]:
    """Start a server, and stop it again; skips the test where none is installed."""
    if shutil.which("initdb") is None:
        pytest.skip("PostgreSQL is not installed (postgresql in Debian)")
    # Not below pytest's folder, which is closed to other users.
    folder = Path(tempfile.mkdtemp(prefix="migrate-ckpt-postgres-"))
    if os.geteuid() == 0:
        shutil.chown(folder, USER)
    server = Postgres(folder, free_port())
    try:
        _run("initdb", "-D", str(folder / "data"), "-U", USER, "-A", "trust", "--no-sync")
        server.start()
        try:
            yield server
        finally:
            # A test that failed may have stopped it.
            with contextlib.suppress(subprocess.CalledProcessError):
                server.stop("immediate")
    finally:
        shutil.rmtree(folder)


def _run(*command: str) -> None:
    user = USER if os.geteuid() == 0 else None
    # What is started goes on with our output otherwise, and whoever reads that waits for its end.
    subprocess.run(command, user=user, check=True, cwd="/", stdout=subprocess.DEVNULL)

"""Notices the death of a worker on PostgreSQL, which is what DBOS leaves to a service of its makers.

Each worker holds an advisory lock on its name as long as its connection lasts, so the database itself says
who is alive: a name whose lock can be had is that of a worker that is gone, and what it had begun is
queued anew. The locks need a connection that is this worker's own (PostgreSQL's manual, 13.3.5), not one
of a pooler that hands it to another after each transaction.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator

import psycopg

logger = logging.getLogger(__name__)

PERIOD_SECONDS = 1.0
# After the database was away, others get so long to have their locks again before they pass for dead.
SETTLE_SECONDS = 6.0

_UP_SECONDS = "SELECT extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())"


class Guard:
    """Holds this worker's lock, and looks for those of others.

    Args:
        database_url: of the database that the workers have in common.
        name: this worker's, which no other one has.
        owners: the names of all that have begun what has not ended.
        take_over: queues anew what the worker of this name has begun.
    """

    def __init__(
        self,
        database_url: str,
        name: str,
        *,
        owners: Callable[[], Iterable[str]],
        take_over: Callable[[str], None],
    ) -> None:
        self._database_url = database_url
        self._name = name
        self._owners = owners
        self._take_over = take_over
        self._connection: psycopg.Connection | None = None
        self._settled_at = 0.0
        self._stop = threading.Event()

    def __enter__(self) -> Guard:
        self._connection = self._connect()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._connection is not None:
            self._connection.close()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Look after the others until the block is left."""
        thread = threading.Thread(target=self._watch, name="guard", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _watch(self) -> None:
        was_well = True
        while not self._stop.wait(PERIOD_SECONDS):
            try:
                self._look()
                if not was_well:
                    logger.info("The other workers are looked after again")
                was_well = True
            except Exception as error:
                # Whatever it is, the next look may find it mended; without one, nobody's death is noticed.
                if was_well:
                    reason = str(error).partition("\n")[0] or type(error).__name__
                    logger.warning("The other workers cannot be looked after: %s", reason)
                was_well = False

    def _look(self) -> None:
        if self._connection is None or self._connection.closed:
            self._connection = self._connect()
            self._settled_at = time.monotonic() + SETTLE_SECONDS
        up = self._connection.execute(_UP_SECONDS).fetchone()
        assert up is not None
        if up[0] < SETTLE_SECONDS or time.monotonic() < self._settled_at:
            return
        for owner in set(self._owners()) - {self._name}:
            with _lock(self._connection, owner) as is_gone:
                if is_gone:
                    logger.warning("Worker %s is gone; its jobs are taken up again", owner)
                    self._take_over(owner)

    def _connect(self) -> psycopg.Connection:
        connection = psycopg.connect(
            self._database_url,
            autocommit=True,
            connect_timeout=10,
            application_name="migrate-ckpt guard",
            keepalives_idle=5,
            keepalives_interval=5,
            keepalives_count=3,
        )
        # The same for the server, which is to notice that a host of ours is gone.
        for setting in ("idle = 5", "interval = 5", "count = 3"):
            connection.execute(f"SET tcp_keepalives_{setting}")
        if not _try_lock(connection, self._name):
            connection.close()
            raise OSError(f"the lock of {self._name} is held by another")
        return connection


@contextlib.contextmanager
def _lock(connection: psycopg.Connection, name: str) -> Iterator[bool]:
    """Hold the lock of this name, if it can be had; says whether."""
    is_held = _try_lock(connection, name)
    try:
        yield is_held
    finally:
        if is_held:
            connection.execute("SELECT pg_advisory_unlock(%s)", (_key(name),))


def _try_lock(connection: psycopg.Connection, name: str) -> bool:
    row = connection.execute("SELECT pg_try_advisory_lock(%s)", (_key(name),)).fetchone()
    assert row is not None
    return bool(row[0])


def _key(name: str) -> int:
    digest = hashlib.sha256(f"migrate-ckpt worker {name}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)

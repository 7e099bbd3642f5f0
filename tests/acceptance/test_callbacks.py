"""A callback that waits for its next attempt survives a service that is killed, and a receiver that is away."""

from __future__ import annotations

import http.server
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.conftest import Service, eventually, free_port, running_service, write_sets

standardwebhooks = pytest.importorskip(
    "standardwebhooks", reason="the extra [jobs] is not installed"
)
pytest.importorskip("dbos", reason="the extra [jobs] is not installed")
pytestmark = pytest.mark.acceptance

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
SECONDS = 60


@dataclass
class Receiver:
    port: int
    statuses: list[int] = field(default_factory=list)
    messages: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hooks/models"

    def serve(self) -> http.server.ThreadingHTTPServer:
        """Begin to answer, with the statuses that are given, and 200 from then on."""
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                receiver.messages.append((headers, body))
                self.send_response(receiver.statuses.pop(0) if receiver.statuses else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver(free_port())
    server = receiver.serve()
    yield receiver
    server.shutdown()
    server.server_close()


def start(folder: Path, receiver: Receiver) -> Any:
    write_sets(folder / "migrations")
    return running_service(
        folder,
        MIGRATE_CKPT_DATA_FOLDER=str(folder / "data"),
        MIGRATE_CKPT_ALLOWED_CALLBACKS=f"http://127.0.0.1:{receiver.port}",
        MIGRATE_CKPT_ALLOWED_NETWORKS="127.0.0.1/32",
        MIGRATE_CKPT_CALLBACK_SECRET=SECRET,
        MIGRATE_CKPT_CALLBACK_DELAYS_SECONDS="2 2 2 2 2 2",
    )


def submit(service: Service, old: Path, receiver: Receiver) -> str:
    answer = httpx.post(
        f"{service.url}/jobs?callback={receiver.url}", content=old.read_bytes(), timeout=60
    )
    assert answer.status_code == 202, answer.text
    path: str = answer.headers["location"]
    return path


def status(service: Service, path: str) -> list[str]:
    found = httpx.get(f"{service.url}{path}/deliveries").json()["deliveries"]
    return [delivery["status"] for delivery in found]


def test_delivery_goes_on_after_a_kill(tmp_path: Path, old: Path, receiver: Receiver) -> None:
    receiver.statuses = [500]
    with start(tmp_path, receiver) as service:
        path = submit(service, old, receiver)
        assert eventually(lambda: receiver.messages, seconds=SECONDS)
        # What the attempt came to is written down by now, or the attempt is made again.
        os.kill(service.pid, signal.SIGKILL)
        service.process.wait()
    before = len(receiver.messages)
    with start(tmp_path, receiver) as service:
        assert eventually(lambda: status(service, path) == ["delivered"], seconds=SECONDS)

    assert len(receiver.messages) > before
    assert len({body for _, body in receiver.messages}) == 1
    assert len({headers["webhook-id"] for headers, _ in receiver.messages}) == 1
    headers, body = receiver.messages[-1]
    message = standardwebhooks.Webhook(SECRET).verify(body, headers)
    assert message["type"] == "migration.succeeded"
    assert message["data"]["report"]["ran"] == ["0001_first"]


def test_receiver_that_is_away_is_told_when_it_comes_back(tmp_path: Path, old: Path) -> None:
    receiver = Receiver(free_port())
    with start(tmp_path, receiver) as service:
        path = submit(service, old, receiver)
        deliveries = f"{service.url}{path}/deliveries"

        def failed_once() -> bool:
            found = httpx.get(deliveries).json()["deliveries"]
            return bool(found) and found[0]["attempts"][0]["error"] is not None

        assert eventually(failed_once, seconds=SECONDS)
        # The job itself is none the worse for it.
        assert httpx.get(f"{service.url}{path}").json()["status"] == "succeeded"
        server = receiver.serve()
        try:
            assert eventually(lambda: status(service, path) == ["delivered"], seconds=SECONDS)
        finally:
            server.shutdown()
            server.server_close()

    assert len(receiver.messages) == 1
    assert SECRET not in service.log.read_text()

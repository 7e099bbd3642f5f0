"""The end of a job is told to whom it names, signed, and until it is taken."""

from __future__ import annotations

import asyncio
import http.server
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import pytest
import torch
from fastapi import FastAPI

from app.main import create_app
from app.settings import Settings, SettingsError, read_settings
from tests.app.conftest import Client

standardwebhooks = pytest.importorskip(
    "standardwebhooks", reason="the extra [jobs] is not installed"
)
pytest.importorskip("dbos", reason="the extra [jobs] is not installed")

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
NEW_SECRET = "whsec_" + "QUJD" * 8


@dataclass
class Receiver:
    """A web server that answers as it is told and keeps what came."""

    url: str = ""
    answers: list[int] = field(default_factory=list)
    messages: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    is_endless: bool = False
    sent_bytes: int = 0
    hung_up: threading.Event = field(default_factory=threading.Event)

    def expect(self, *answers: int) -> None:
        self.answers[:] = answers
        self.messages.clear()

    def send_for_ever(self, file: Any) -> None:
        """Answer with as many bytes as are taken."""
        try:
            while self.sent_bytes < 2**30:
                file.write(bytes(2**16))
                self.sent_bytes += 2**16
        except OSError:
            self.hung_up.set()


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            receiver.messages.append((headers, body))
            status = receiver.answers.pop(0) if receiver.answers else 204
            self.send_response(status)
            if receiver.is_endless:
                self.end_headers()
                receiver.send_for_ever(self.wfile)
                return
            if status in (301, 302):
                self.send_header("Location", f"{receiver.url}/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    receiver.url = f"http://127.0.0.1:{server.server_address[1]}/hooks"
    yield receiver
    server.shutdown()
    server.server_close()


def checkpoint(value: float) -> bytes:
    file = io.BytesIO()
    torch.save({"a": torch.full((10,), value)}, file)
    return file.getvalue()


@pytest.fixture(scope="module")
def client(
    start: Callable[[FastAPI], Client],
    tmp_path_factory: pytest.TempPathFactory,
    receiver: Receiver,
) -> Client:
    migrations = tmp_path_factory.mktemp("migrations")
    (migrations / "0001_keep.py").write_text("def handle(ckpt):\n    return ckpt\n")
    (migrations / "fails").mkdir()
    (migrations / "fails" / "0001_fail.py").write_text("def handle(ckpt):\n    raise KeyError\n")
    (migrations / "slow").mkdir()
    (migrations / "slow" / "0001_wait.py").write_text(
        "import time\ndef handle(ckpt):\n    time.sleep(60)\n"
    )
    settings = Settings(
        migrations_folder=migrations,
        scratch_folder=tmp_path_factory.mktemp("scratch"),
        data_folder=tmp_path_factory.mktemp("data"),
        allowed_callbacks=(receiver.url,),
        allowed_networks=("127.0.0.0/8",),
        callback_secret=f"{NEW_SECRET} {SECRET}",
        callback_delays_seconds=(0.1, 0.1, 0.1),
    )
    return start(create_app(settings))


def submit(client: Client, receiver: Receiver, value: float, query: str = "") -> str:
    answer = client.post(f"/jobs?callback={receiver.url}{query}", content=checkpoint(value))
    assert answer.status_code == 202, answer.text
    path: str = answer.headers["location"]
    return path


def delivered(client: Client, path: str, number: int = 0) -> dict[str, Any]:
    """Wait until a delivery has come to its end."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = client.get(f"{path}/deliveries").json()["deliveries"]
        if len(found) > number and found[number]["status"] in ("delivered", "failed"):
            return dict(found[number])
        client.get(path, headers={"Prefer": "wait=1"})
        time.sleep(0.05)
    raise AssertionError(found)


def test_end_of_a_job_is_told_and_signed_with_both_secrets(
    client: Client, receiver: Receiver
) -> None:
    receiver.expect(200)
    path = submit(client, receiver, 1.0)

    delivery = delivered(client, path)

    ((headers, body),) = receiver.messages
    for secret in (SECRET, NEW_SECRET):
        message = standardwebhooks.Webhook(secret).verify(body, headers)
    assert message["type"] == delivery["event"] == "migration.succeeded"
    assert message["data"]["url"] == path
    assert message["data"]["report"]["ran"] == ["0001_keep"]
    assert message["timestamp"] == message["data"]["ended"]
    assert headers["webhook-id"] == delivery["webhook_id"] == f"msg_{message['data']['id']}"
    assert len(body) < 20_000
    assert [attempt["status"] for attempt in delivery["attempts"]] == [200]


def test_signature_is_the_published_one() -> None:
    from app.jobs.callbacks import Callbacks
    from app.jobs.delivery import Delivery
    from app.outbound.networks import Networks
    from app.storage.allowed import AllowedLocations

    when = datetime.fromtimestamp(1614265330, timezone.utc)
    signed = standardwebhooks.Webhook(SECRET).sign(
        "msg_p5jXN8AQM9LWM0D4loKWxJek", when, '{"test": 2432232314}'
    )
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="

    callbacks = Callbacks(AllowedLocations.of("callback", ()), Networks(), (SECRET, NEW_SECRET), ())
    headers = callbacks._headers(Delivery("a", "https://example.org", body="{}"), "{}")
    assert len(headers["webhook-signature"].split()) == 2
    standardwebhooks.Webhook(NEW_SECRET).verify("{}", headers)


def test_answer_of_the_receiver_is_not_read(client: Client, receiver: Receiver) -> None:
    receiver.expect(200)
    receiver.is_endless = True
    try:
        delivery = delivered(client, submit(client, receiver, 11.0))
    finally:
        receiver.is_endless = False

    assert [attempt["status"] for attempt in delivery["attempts"]] == [200]
    assert receiver.hung_up.wait(60)
    assert receiver.sent_bytes < 64 * 2**20


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("120", 120, 120),
        ("Fri, 01 Jan 2100 00:00:00 GMT", 2e9, 3e9),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0, 0),
        ("-5", 0, 0),
        ("soon", 0, 0),
        ("", 0, 0),
        ("²", 0, 0),
    ],
)
def test_retry_after_is_a_number_or_a_date(text: str, least: float, most: float) -> None:
    from app.jobs.callbacks import read_retry_after

    assert least <= read_retry_after(text) <= most


def test_attempt_that_fails_unforeseen_is_one_that_failed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from app.jobs import callbacks
    from app.jobs.delivery import Delivery
    from app.outbound.networks import Networks
    from app.storage.allowed import AllowedLocations

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("not foreseen")

    monkeypatch.setattr(callbacks, "guarded_client", fail)
    url = "https://example.org/hook"
    allowed = AllowedLocations.of("callback", [url])
    calling = callbacks.Callbacks(allowed, Networks(), (SECRET,), (1.0,))

    attempt = asyncio.run(calling.attempt(Delivery("a", url, body="{}")))

    assert not attempt.is_delivered
    assert attempt.delay_seconds is not None
    assert "not foreseen" in caplog.text


def test_callback_is_tried_again_with_the_same_bytes(client: Client, receiver: Receiver) -> None:
    receiver.expect(500, 302, 200)

    delivery = delivered(client, submit(client, receiver, 2.0))

    assert [attempt["status"] for attempt in delivery["attempts"]] == [500, 302, 200]
    assert len({body for _, body in receiver.messages}) == 1
    assert len({headers["webhook-id"] for headers, _ in receiver.messages}) == 1
    assert "answered 500" in delivery["attempts"][0]["error"]


@pytest.mark.parametrize(
    ("answers", "attempts"),
    [((410, 200), 1), ((500, 500, 500, 500, 200), 4)],
    ids=["gone", "the schedule ends"],
)
def test_callback_is_given_up(
    client: Client, receiver: Receiver, answers: tuple[int, ...], attempts: int
) -> None:
    receiver.expect(*answers)

    delivery = delivered(client, submit(client, receiver, 3.0 + len(answers)))

    assert delivery["status"] == "failed"
    assert len(delivery["attempts"]) == len(receiver.messages) == attempts


def test_job_that_fails_or_is_cancelled_is_told_as_well(client: Client, receiver: Receiver) -> None:
    receiver.expect()
    delivered(client, submit(client, receiver, 5.0, "&set=fails"))
    slow = submit(client, receiver, 6.0, "&set=slow")
    assert client.request("DELETE", slow).status_code == 200
    delivered(client, slow)

    failed, cancelled = (json.loads(body) for _, body in receiver.messages)
    assert failed["type"] == "migration.failed"
    assert failed["data"]["problem"]["error_type"] == "migration_failed"
    assert cancelled["type"] == "migration.cancelled"


def test_end_can_be_told_once_more(client: Client, receiver: Receiver) -> None:
    receiver.expect(410)
    path = submit(client, receiver, 7.0)
    assert delivered(client, path)["status"] == "failed"

    again = client.post(f"{path}/deliveries")

    assert again.status_code == 202
    assert delivered(client, path, 1)["status"] == "delivered"
    (first, body), (second, same) = receiver.messages
    assert first["webhook-id"] == second["webhook-id"]
    assert body == same


def test_job_without_a_callback_has_no_deliveries(client: Client, receiver: Receiver) -> None:
    path = client.post("/jobs", content=checkpoint(8.0)).headers["location"]

    assert client.get(f"{path}/deliveries").json() == {"deliveries": []}
    client.get(path, headers={"Prefer": "wait=60"})
    refused = client.post(f"{path}/deliveries")
    assert (refused.status_code, refused.json()["error_type"]) == (409, "no_callback")


@pytest.mark.parametrize(
    ("url", "error_type"),
    [
        ("https://example.org/hook", "callback_not_allowed"),
        ("http://127.0.0.1:1/hooks", "callback_not_allowed"),
        ("s3://bucket/a", "invalid_location"),
        ("ftp://example.org/a", "invalid_location"),
        ("https://user@example.org/", "invalid_location"),
    ],
)
def test_callback_that_is_not_allowed_is_refused_at_once(
    client: Client, url: str, error_type: str
) -> None:
    answer = client.post(f"/jobs?callback={url}", content=checkpoint(9.0))

    assert answer.json()["error_type"] == error_type
    assert answer.status_code in (400, 403)
    # What a source may be besides is of no use to whoever names a callback.
    assert "gs://" not in answer.json()["detail"]


def test_callbacks_are_in_the_metrics(client: Client, receiver: Receiver) -> None:
    receiver.expect(200)
    delivered(client, submit(client, receiver, 10.0))

    text = client.get("/metrics").text
    assert 'migrate_ckpt_callback_attempts_total{outcome="delivered"}' in text
    assert 'migrate_ckpt_runs_total{action="migrate",error_type="",outcome="succeeded"}' in text


@pytest.mark.parametrize("secret", ["short", "whsec_QUJD", "whsec_?" + "QUJD" * 8])
def test_secret_that_is_none_is_refused_and_not_told(
    monkeypatch: pytest.MonkeyPatch, secret: str
) -> None:
    monkeypatch.setenv("MIGRATE_CKPT_CALLBACK_SECRET", secret)

    with pytest.raises(SettingsError) as caught:
        read_settings()

    assert "MIGRATE_CKPT_CALLBACK_SECRET cannot be used" in str(caught.value)
    assert secret not in str(caught.value)


def test_secrets_come_from_a_file_too(tmp_path: Any) -> None:
    (tmp_path / "secrets").write_text(f"{NEW_SECRET}\n{SECRET}\n")
    settings = Settings(migrations_folder=tmp_path, callback_secret_file=tmp_path / "secrets")

    assert settings.callback_secrets == (NEW_SECRET, SECRET)


def test_callback_is_tried_for_days_unless_the_operator_says_otherwise(tmp_path: Any) -> None:
    delays = Settings(migrations_folder=tmp_path).callback_delays_seconds

    assert delays[0] == 5
    assert 3 * 86400 < sum(delays) < 5 * 86400

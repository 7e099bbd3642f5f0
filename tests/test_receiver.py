"""The receiver of the documentation takes what is genuine, once, and nothing else."""

from __future__ import annotations

import base64
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx
import pytest

standardwebhooks = pytest.importorskip(
    "standardwebhooks", reason="the extra [jobs] is not installed"
)

REPOSITORY = Path(__file__).resolve().parent.parent
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
NEW_SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
OTHER_SECRET = "whsec_" + base64.b64encode(bytes(32)).decode()
BODY = '{"type": "migration.succeeded", "data": {"filename": "größe.ckpt"}}'


@dataclass
class Running:
    process: subprocess.Popen[str]
    url: str

    def post(self, headers: dict[str, str], body: str = BODY) -> int:
        return httpx.post(self.url, content=body.encode(), headers=headers, timeout=60).status_code

    def printed(self) -> str:
        """End it, and return what it has printed."""
        self.process.terminate()
        return self.process.communicate(timeout=60)[0]


@pytest.fixture
def receiver() -> Iterator[Running]:
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "docs" / "receiver.py"), "0"],
        env={
            **os.environ,
            "CALLBACK_SECRET": f"{NEW_SECRET} {SECRET}",
            "PYTHONIOENCODING": "utf-8",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    assert process.stderr is not None
    try:
        yield Running(process, process.stderr.readline().split()[-1])
    finally:
        process.kill()
        process.communicate()


def signed(*secrets: str, age: int = 0, message_id: str = "msg_1") -> dict[str, str]:
    now = datetime.now(timezone.utc).replace(microsecond=0) - timedelta(seconds=age)
    signatures = [standardwebhooks.Webhook(each).sign(message_id, now, BODY) for each in secrets]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


def test_message_is_taken_with_any_of_the_secrets_and_printed_once(receiver: Running) -> None:
    statuses = [
        receiver.post(signed(SECRET)),
        receiver.post(signed(NEW_SECRET)),
        receiver.post(signed(OTHER_SECRET, SECRET)),
        receiver.post(signed(SECRET, message_id="msg_2")),
    ]

    assert statuses == [204] * 4
    assert receiver.printed() == f"{BODY}\n" * 2


@pytest.mark.parametrize(
    "forge",
    [
        pytest.param(lambda: signed(OTHER_SECRET), id="another-secret"),
        pytest.param(lambda: signed(SECRET, age=400), id="too-old"),
        pytest.param(lambda: signed(SECRET, age=-400), id="too-new"),
        pytest.param(dict, id="no-headers"),
        pytest.param(lambda: {**signed(SECRET), "webhook-id": "msg_2"}, id="another-id"),
        pytest.param(lambda: {**signed(SECRET), "webhook-signature": "v1"}, id="half-a-signature"),
        pytest.param(lambda: {**signed(SECRET), "webhook-signature": "v1,?"}, id="no-base64"),
        pytest.param(lambda: {**signed(SECRET), "webhook-timestamp": "nan"}, id="no-time"),
        pytest.param(
            lambda: {**signed(SECRET), "webhook-timestamp": "9" * 5000}, id="no-time-ever"
        ),
    ],
)
def test_message_that_is_not_genuine_is_refused(
    receiver: Running, forge: Callable[[], dict[str, str]]
) -> None:
    assert receiver.post(forge()) == 401
    assert receiver.printed() == ""


def test_message_that_was_changed_on_its_way_is_refused(receiver: Running) -> None:
    assert receiver.post(signed(SECRET), body=BODY.replace("succeeded", "failed")) == 401


def test_published_vector_is_genuine() -> None:
    verify = _module()["verify"]
    headers = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }

    found = verify([SECRET], headers, b'{"test": 2432232314}', now=1614265330 + 299)

    assert found == "msg_p5jXN8AQM9LWM0D4loKWxJek"


def _module() -> dict[str, Any]:
    return runpy.run_path(str(REPOSITORY / "docs" / "receiver.py"))

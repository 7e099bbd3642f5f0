"""What is refused is refused before the body is read, and what is let in gets its turn."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch

from tests.acceptance.conftest import Service, eventually, running_service, write_sets

pytestmark = pytest.mark.acceptance

TOKEN = "mck_" + "t" * 30
READER = "mck_" + "r" * 30
MAX_UPLOAD_BYTES = 100 * 2**20


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with tokens, one run at once and one more request beside it."""
    folder = tmp_path_factory.mktemp("narrow")
    write_sets(folder / "migrations")
    tokens = folder / "tokens"
    tokens.write_text(f"ci:migrate,read:{TOKEN}\ngrafana:read:{READER}\n")
    with running_service(
        folder,
        MIGRATE_CKPT_TOKENS_FILE=str(tokens),
        MIGRATE_CKPT_MAX_CONCURRENT_RUNS="1",
        MIGRATE_CKPT_MAX_QUEUED_RUNS="1",
        MIGRATE_CKPT_MAX_UPLOAD_BYTES=str(MAX_UPLOAD_BYTES),
    ) as service:
        yield service


@pytest.fixture(autouse=True)
def _all_have_gone(request: pytest.FixtureRequest) -> None:
    # Those of the test before have hung up, and the service may not have seen it yet.
    if "narrow" in request.fixturenames:
        narrow = request.getfixturevalue("narrow")
        assert eventually(lambda: admitted(narrow) == 0)


def admitted(service: Service) -> float:
    """How many requests hold a place."""
    lines = httpx.get(f"{service.url}/metrics", headers=authorization()).text.splitlines()
    name = "migrate_ckpt_requests_admitted "
    return float(next(line for line in lines if line.startswith(name)).split()[1])


class Connection:
    """A raw connection: what is sent is just this, and what comes back is seen as it is."""

    def __init__(self, service: Service) -> None:
        host, port = service.url.removeprefix("http://").split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=30)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send_head(self, path: str, **headers: str | int) -> None:
        lines = [f"POST {path} HTTP/1.1", "Host: x"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())

    def read_all(self) -> bytes:
        """Everything until the server closes."""
        return b"".join(iter(lambda: self.socket.recv(65536), b""))


def authorization(token: str = TOKEN) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def parse(answer: bytes) -> tuple[int, dict[str, str], dict[str, object]]:
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    return int(first.split()[1]), headers, json.loads(body)


def run_for_long(service: Service, old: Path) -> Connection:
    """A request whose run lasts until its client goes."""
    connection = Connection(service)
    body = old.read_bytes()
    connection.send_head("/migrate?set=sleeps", Content_Length=len(body), **authorization())
    connection.socket.sendall(body)
    assert eventually(service.runs)
    return connection


@pytest.mark.parametrize(
    ("path", "headers", "status", "error_type"),
    [
        pytest.param("/migrate", {}, 401, "unauthorized", id="no token"),
        pytest.param("/migrate", authorization("x" * 40), 401, "unauthorized", id="wrong token"),
        pytest.param("/migrate", authorization(READER), 403, "insufficient_scope", id="scope"),
        pytest.param(
            "/migrate",
            {**authorization(), "Content_Length": MAX_UPLOAD_BYTES + 1},
            413,
            "too_large",
            id="too large",
        ),
        pytest.param("/migrate?set=none", authorization(), 404, "unknown_set", id="set"),
        pytest.param("/nowhere", authorization(), 404, "not_found", id="path"),
        pytest.param("/livez", {}, 401, "unauthorized", id="method, without a token"),
        pytest.param("/livez", authorization(), 405, "method_not_allowed", id="method"),
    ],
)
def test_refusal_asks_for_no_byte_of_the_body(
    narrow: Service, path: str, headers: dict[str, str | int], status: int, error_type: str
) -> None:
    with Connection(narrow) as connection:
        connection.send_head(path, **{"Content_Length": 5000, "Expect": "100-continue", **headers})

        answer = connection.read_all()

    assert b"100 Continue" not in answer
    found, answered, problem = parse(answer)
    assert (found, problem["error_type"]) == (status, error_type)
    assert answered["content-type"] == "application/problem+json"
    assert answered["connection"] == "close"
    assert ("www-authenticate" in answered) is (status in (401, 403))


def test_body_that_is_welcome_is_asked_for(narrow: Service, old: Path) -> None:
    body = old.read_bytes()
    with Connection(narrow) as connection:
        connection.send_head(
            "/inspect",
            Content_Length=len(body),
            Expect="100-continue",
            Connection="close",
            **authorization(),
        )
        assert connection.socket.recv(1000).startswith(b"HTTP/1.1 100 ")
        connection.socket.sendall(body)

        assert connection.read_all().startswith(b"HTTP/1.1 200 ")


def test_full_queue_is_said_before_the_body_and_when_to_come_again(
    narrow: Service, old: Path
) -> None:
    with run_for_long(narrow, old), Connection(narrow) as second, Connection(narrow) as third:
        second.send_head("/migrate", Content_Length=5000, **authorization())
        second.socket.sendall(b"x")
        assert eventually(lambda: len(narrow.scratch_folders()) == 2)

        third.send_head("/migrate", Content_Length=5000, Expect="100-continue", **authorization())
        answer = third.read_all()

    assert b"100 Continue" not in answer
    status, headers, problem = parse(answer)
    assert (status, problem["error_type"], problem["retryable"]) == (503, "queue_full", True)
    assert int(headers["retry-after"]) == problem["retry_after"]
    assert eventually(lambda: not narrow.runs())


@pytest.mark.parametrize("leaves", ["upload", "queue"])
def test_client_that_hangs_up_frees_its_place(narrow: Service, old: Path, leaves: str) -> None:
    with run_for_long(narrow, old):
        with Connection(narrow) as second:
            body = old.read_bytes() if leaves == "queue" else b"x"
            length = len(body) if leaves == "queue" else 5000
            second.send_head("/migrate", Content_Length=length, **authorization())
            second.socket.sendall(body)
            assert eventually(lambda: len(narrow.scratch_folders()) == 2)
        assert eventually(lambda: len(narrow.scratch_folders()) == 1)

        with Connection(narrow) as third:
            third.send_head(
                "/migrate", Content_Length=5000, Expect="100-continue", **authorization()
            )
            assert third.socket.recv(1000).startswith(b"HTTP/1.1 100 ")


def test_chunked_body_is_cut_at_the_limit_while_it_streams(narrow: Service) -> None:
    chunk = b"%x\r\n%s\r\n" % (2**20, b"x" * 2**20)
    sent = 0
    with Connection(narrow) as connection:
        connection.send_head("/inspect", Transfer_Encoding="chunked", **authorization())
        connection.socket.settimeout(0)
        answer = b""
        deadline = time.monotonic() + 30
        while not answer and time.monotonic() < deadline:
            try:
                answer = connection.socket.recv(65536)
            except BlockingIOError:
                connection.socket.settimeout(10)
                connection.socket.sendall(chunk)
                sent += 2**20
                connection.socket.settimeout(0)
        connection.socket.settimeout(10)
        answer += connection.read_all()

    status, headers, problem = parse(answer)
    assert (status, problem["error_type"]) == (413, "too_large")
    assert headers["connection"] == "close"
    assert sent < MAX_UPLOAD_BYTES + 50 * 2**20
    assert eventually(lambda: not narrow.scratch_folders())


def test_client_that_sends_everything_before_it_reads_still_sees_the_refusal(
    narrow: Service,
) -> None:
    # Many clients do: a connection that is just closed would be an error to them, without a word.
    answer = httpx.post(f"{narrow.url}/migrate", content=b"x" * 20_000_000, timeout=30)

    assert answer.status_code == 401


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with two runs at once, and a limit that no disk has room for."""
    folder = tmp_path_factory.mktemp("wide")
    write_sets(folder / "migrations")
    with running_service(
        folder,
        MIGRATE_CKPT_MAX_CONCURRENT_RUNS="2",
        MIGRATE_CKPT_MAX_UPLOAD_BYTES="1EiB",
        MIGRATE_CKPT_MEMORY_BUDGET_BYTES="16GiB",
    ) as service:
        yield service


def test_body_that_the_disk_has_no_room_for_is_not_asked_for(wide: Service) -> None:
    with Connection(wide) as connection:
        connection.send_head("/migrate", Content_Length=2**59, Expect="100-continue")

        answer = connection.read_all()

    assert b"100 Continue" not in answer
    status, headers, problem = parse(answer)
    assert (status, problem["error_type"], problem["retryable"]) == (507, "no_space", True)
    assert headers["connection"] == "close"


def test_room_that_others_hold_is_said_to_come_again(wide: Service) -> None:
    disk = os.statvfs(wide.scratch)
    most = disk.f_bavail * disk.f_frsize * 2 // 3
    with Connection(wide) as first, Connection(wide) as second:
        first.send_head("/migrate", Content_Length=most)
        first.socket.sendall(b"x")
        assert eventually(wide.scratch_folders)

        second.send_head("/migrate", Content_Length=most, Expect="100-continue")
        answer = second.read_all()

    assert b"100 Continue" not in answer
    status, headers, problem = parse(answer)
    assert (status, problem["error_type"]) == (503, "queue_full")
    assert int(headers["retry-after"]) >= 1
    assert eventually(lambda: not wide.scratch_folders())


def test_small_run_does_not_wait_for_large_ones(wide: Service, old: Path, tmp_path: Path) -> None:
    large = tmp_path / "large.ckpt"
    torch.save({"state_dict": {"model.w": torch.zeros(2**28)}}, large)
    large_ones = [Connection(wide) for _ in range(2)]
    for connection in large_ones:
        connection.send_head("/migrate?set=sleeps", Content_Length=large.stat().st_size)
        with large.open("rb") as file:
            connection.socket.sendfile(file)
    assert eventually(wide.runs, seconds=30)
    time.sleep(0.5)
    assert len(wide.runs()) == 1

    answer = httpx.post(f"{wide.url}/migrate", content=old.read_bytes(), timeout=20)

    assert answer.status_code == 200
    for connection in large_ones:
        connection.socket.close()
    assert eventually(lambda: not wide.scratch_folders())


def test_tokens_change_without_a_restart(narrow: Service) -> None:
    tokens = narrow.scratch.parent / "tokens"
    old_list, new = tokens.read_text(), "mck_" + "n" * 30

    def status(token: str) -> int:
        return httpx.get(f"{narrow.url}/version", headers=authorization(token)).status_code

    assert (status(TOKEN), status(new)) == (200, 401)
    tokens.write_text(f"{old_list}other:read:{new}\n")
    assert eventually(lambda: status(new) == 200)
    assert status(TOKEN) == 200
    tokens.write_text(f"other:read:{new}\n")
    assert eventually(lambda: status(TOKEN) == 401)
    tokens.write_text(old_list)
    assert eventually(lambda: status(TOKEN) == 200)

"""Jobs by reference: a source that lies elsewhere, and a destination."""

from __future__ import annotations

import asyncio
import http.server
import io
import ipaddress
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi import FastAPI

from app.errors import ServiceError
from app.main import create_app
from app.outbound.networks import Networks
from app.settings import Settings
from app.storage.allowed import AllowedLocations
from app.storage.transfers import Transfers
from tests.app.conftest import Client

pytest.importorskip("dbos", reason="the extra [jobs] is not installed")


def checkpoint(value: float = 1.0) -> bytes:
    file = io.BytesIO()
    torch.save({"a": torch.full((1000,), value)}, file)
    return file.getvalue()


class Site(http.server.BaseHTTPRequestHandler):
    """A web server whose paths say how they are answered."""

    seen: list[str]
    failures: dict[str, int]

    def do_GET(self) -> None:
        self.seen.append(self.path)
        name = self.path.rpartition("/")[2].partition("?")[0]
        if name == "metadata":
            self._redirect("http://169.254.169.254/latest/meta-data")
        elif name == "outside":
            self._redirect(f"http://127.0.0.1:{self.server.server_address[1]}/private/a.ckpt")
        elif name == "moved":
            self._redirect("a.ckpt")
        elif name == "loop":
            self._redirect("loop")
        elif name == "missing":
            self.send_error(404)
        elif name.isdecimal():
            self.send_error(int(name))
        elif name == "busy" and self.failures.setdefault("busy", 0) < 2:
            self.failures["busy"] += 1
            self.send_error(503)
        elif name == "cut":
            self._send(checkpoint(), length=10**6)
        elif name == "huge":
            self._send(b"x", length=2**40)
        elif name == "endless":
            self._endless(bytes(2**20), pause=0)
        elif name == "slow":
            self._endless(b"x", pause=0.1)
        else:
            self._send(checkpoint(), length=len(checkpoint()))

    def _redirect(self, where: str) -> None:
        self.send_response(302)
        self.send_header("Location", where)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, body: bytes, *, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def _endless(self, block: bytes, *, pause: float) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(block)
                time.sleep(pause)
        except OSError:
            pass

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    Site.seen, Site.failures = [], {}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    (folder / "in").mkdir()
    (folder / "out").mkdir()
    (folder / "secret.ckpt").write_bytes(checkpoint())
    return folder


@pytest.fixture(scope="module")
def client(
    start: Callable[[FastAPI], Client],
    tmp_path_factory: pytest.TempPathFactory,
    models: Path,
    site: str,
) -> Client:
    migrations = tmp_path_factory.mktemp("migrations")
    (migrations / "0001_rename.py").write_text(
        'def handle(ckpt):\n    ckpt["b"] = ckpt.pop("a")\n    return ckpt\n'
    )
    settings = Settings(
        migrations_folder=migrations,
        scratch_folder=tmp_path_factory.mktemp("scratch"),
        data_folder=tmp_path_factory.mktemp("data"),
        max_upload_bytes=2**20,
        allowed_sources=(f"file://{models}/in", f"{site}/models"),
        allowed_destinations=(f"file://{models}/out",),
        allowed_networks=("127.0.0.0/8",),
    )
    return start(create_app(settings))


def order(client: Client, **members: Any) -> dict[str, Any]:
    """Order a job, and return its document when it has ended."""
    answer = client.post("/jobs", json=members)
    assert answer.status_code == 202, answer.text
    path = answer.headers["location"]
    done: dict[str, Any] = client.get(path, headers={"Prefer": "wait=60"}).json()
    return done


def refused(client: Client, **members: Any) -> dict[str, Any]:
    answer = client.post("/jobs", json=members)
    assert answer.status_code in (400, 403, 404), answer.text
    problem: dict[str, Any] = answer.json()
    return problem


def put(models: Path, name: str, value: float = 1.0) -> str:
    path = models / "in" / name
    path.write_bytes(checkpoint(value))
    return f"file://{path}"


def assert_migrated(content: bytes) -> None:
    assert set(torch.load(io.BytesIO(content), weights_only=True)) >= {"b"}


def test_file_is_migrated_where_it_lies_and_written_where_it_is_wanted(
    client: Client, models: Path
) -> None:
    source = put(models, "a.ckpt")
    before = (models / "in" / "a.ckpt").read_bytes()

    done = order(client, source=source, destination=f"file://{models}/out/new.ckpt")

    assert done["status"] == "succeeded", done
    assert done["report"]["ran"] == ["0001_rename"]
    assert (done["source"], done["result"]) == (source, None)
    assert done["size"] == len(before)
    assert_migrated((models / "out" / "new.ckpt").read_bytes())
    assert (models / "in" / "a.ckpt").read_bytes() == before
    assert [path.name for path in (models / "out").iterdir()] == ["new.ckpt"]
    asked = client.get(f"{done['url']}/result")
    assert (asked.status_code, asked.json()["error_type"]) == (409, "result_delivered")


def test_what_is_at_the_destination_is_replaced_only_on_demand(
    client: Client, models: Path
) -> None:
    source = put(models, "b.ckpt", 2.0)
    target = models / "out" / "there.ckpt"
    target.write_bytes(b"somebody's")

    kept = order(client, source=source, destination=f"file://{target}")
    assert (kept["status"], kept["problem"]["error_type"]) == ("failed", "destination_exists")
    assert target.read_bytes() == b"somebody's"

    replaced = order(client, source=source, destination=f"file://{target}", overwrite=True)
    assert replaced["status"] == "succeeded", replaced
    assert_migrated(target.read_bytes())


def test_result_without_a_destination_is_kept_here(client: Client, models: Path) -> None:
    done = order(client, source=put(models, "c.ckpt", 3.0))

    answer = client.get(done["result"]["url"])
    assert_migrated(answer.content)
    assert "c" in answer.headers["content-disposition"]


def test_same_bytes_again_are_answered_from_the_kept_result(client: Client, models: Path) -> None:
    first = order(client, source=put(models, "d.ckpt", 4.0))
    again = order(client, source=put(models, "e.ckpt", 4.0), destination=f"file://{models}/out/e")

    assert again["report"]["fingerprint"] == first["report"]["fingerprint"]
    assert (models / "out" / "e").read_bytes() == client.get(first["result"]["url"]).content


def test_link_out_of_the_folder_is_refused(client: Client, models: Path) -> None:
    (models / "in" / "link.ckpt").symlink_to(models / "secret.ckpt")
    os.symlink(models, models / "in" / "up")

    for name in ("link.ckpt", "up/secret.ckpt"):
        problem = refused(client, source=f"file://{models}/in/{name}")
        assert problem["error_type"] == "source_not_allowed"
        assert "MIGRATE_CKPT_ALLOWED_SOURCES" in problem["detail"]


@pytest.mark.parametrize(
    ("members", "error_type"),
    [
        ({"source": "file:///etc/passwd"}, "source_not_allowed"),
        ({"source": "s3://models/a"}, "source_not_allowed"),
        ({"source": "https://example.org/a"}, "source_not_allowed"),
        ({"source": "nonsense"}, "invalid_location"),
        ({"source": "{good}", "destination": "file:///tmp/a"}, "destination_not_allowed"),
        ({"source": "{good}", "destination": "{good}"}, "destination_not_allowed"),
        ({"source": "{good}", "sets": "default"}, "invalid_order"),
        ({"source": "{good}", "set": "nowhere"}, "unknown_set"),
        ({"source": "{good}", "overwrite": "yes"}, "invalid_order"),
        ({}, "invalid_order"),
    ],
)
def test_what_is_not_allowed_is_refused_at_once(
    client: Client, models: Path, members: dict[str, Any], error_type: str
) -> None:
    good = put(models, "good.ckpt")
    filled = {name: good if value == "{good}" else value for name, value in members.items()}

    assert refused(client, **filled)["error_type"] == error_type


def test_body_that_is_no_json_is_refused(client: Client) -> None:
    headers = {"Content-Type": "application/json"}

    for body in (b"{", b"[]", b'{"source": 1}'):
        answer = client.post("/jobs", content=body, headers=headers)
        assert (answer.status_code, answer.json()["error_type"]) == (400, "invalid_order")
    answer = client.post("/jobs", content=b" " * 70_000, headers=headers)
    assert answer.status_code == 413


def test_web_address_is_fetched_and_tried_again(client: Client, site: str) -> None:
    for name in ("a.ckpt", "busy", "moved"):
        done = order(client, source=f"{site}/models/{name}?signature=secret")
        assert done["status"] == "succeeded", done
        assert "secret" not in str(done)


@pytest.mark.parametrize(
    ("name", "error_type"),
    [
        ("metadata", "source_not_allowed"),
        ("outside", "source_not_allowed"),
        ("loop", "source_unavailable"),
        ("missing", "source_not_found"),
        ("403", "source_refused"),
        ("451", "source_refused"),
        ("huge", "too_large"),
        ("endless", "too_large"),
    ],
)
def test_web_address_that_leads_astray_fails_the_job(
    client: Client, site: str, name: str, error_type: str
) -> None:
    done = order(client, source=f"{site}/models/{name}")

    assert (done["status"], done["problem"]["error_type"]) == ("failed", error_type)
    assert "/private/a.ckpt" not in Site.seen


def test_server_that_takes_its_time_is_given_up(site: str, tmp_path: Path) -> None:
    sources = AllowedLocations.of("source", [f"{site}/models"])
    transfers = Transfers(
        sources, sources, Networks([ipaddress.ip_network("127.0.0.0/8")]), 2**20, 1.0
    )

    async def fetch() -> None:
        source, _ = transfers.parse(f"{site}/models/slow", None)
        await transfers.fetch(source, tmp_path / "fetched", lambda _: None)

    with pytest.raises(ServiceError, match="after the 1 seconds") as caught:
        asyncio.run(fetch())
    assert (caught.value.error_type, caught.value.retryable) == ("source_unavailable", True)


def test_missing_file_fails_the_job(client: Client, models: Path) -> None:
    done = order(client, source=f"file://{models}/in/none.ckpt")
    assert done["problem"]["error_type"] == "source_not_found"

    done = order(client, source=put(models, "x.ckpt"), destination=f"file://{models}/out/no/x")
    assert done["problem"]["error_type"] == "destination_refused"

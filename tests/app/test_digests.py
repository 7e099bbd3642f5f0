from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable

import pytest
import torch
from fastapi import FastAPI

from app.digests import wanted_algorithm
from app.main import create_app
from app.settings import Settings
from tests.app.conftest import Client


@pytest.fixture(scope="module")
def client(start: Callable[[FastAPI], Client], tmp_path_factory: pytest.TempPathFactory) -> Client:
    migrations = tmp_path_factory.mktemp("migrations")
    (migrations / "0001_add.py").write_text(
        "def handle(ckpt):\n    ckpt['b'] = 1\n    return ckpt\n"
    )
    scratch = tmp_path_factory.mktemp("scratch")
    return start(create_app(Settings(migrations_folder=migrations, scratch_folder=scratch)))


@pytest.fixture(scope="module")
def old() -> bytes:
    file = io.BytesIO()
    torch.save({"a": torch.arange(100)}, file)
    return file.getvalue()


def field(data: bytes, algorithm: str = "sha-256") -> str:
    digest = hashlib.new(algorithm.replace("-", ""), data).digest()
    return f"{algorithm}=:{base64.b64encode(digest).decode()}:"


@pytest.mark.parametrize("name", ["Content-Digest", "Repr-Digest"])
@pytest.mark.parametrize("algorithm", ["sha-256", "sha-512"])
def test_body_is_held_against_its_digest(
    client: Client, old: bytes, name: str, algorithm: str
) -> None:
    good = client.post("/inspect", content=old, headers={name: field(old, algorithm)})
    bad = client.post("/inspect", content=old, headers={name: field(b"other", algorithm)})

    assert good.status_code == 200
    assert (bad.status_code, bad.json()["error_type"]) == (400, "digest_mismatch")
    assert bad.json()["field"] == name


def test_every_digest_has_to_fit(client: Client, old: bytes) -> None:
    both = f"{field(old)}, {field(b'other', 'sha-512')}"

    answer = client.post("/inspect", content=old, headers={"Repr-Digest": both})

    assert answer.json()["error_type"] == "digest_mismatch"


def test_digest_of_a_form_is_that_of_the_whole_body(client: Client, old: bytes) -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    body = head + old + b"\r\n--x--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=x"}

    whole = client.post(
        "/inspect", content=body, headers={**headers, "Content-Digest": field(body)}
    )
    file = client.post("/inspect", content=body, headers={**headers, "Content-Digest": field(old)})

    assert whole.status_code == 200
    assert file.json()["error_type"] == "digest_mismatch"


def test_algorithm_that_is_not_known_is_passed_over(client: Client, old: bytes) -> None:
    answer = client.post("/inspect", content=old, headers={"Repr-Digest": "md5=:AAAA:"})

    assert answer.status_code == 200


@pytest.mark.parametrize("value", ["sha-256=AAAA", "sha-256", "sha-256=:A", "=", "sha-256=(1 2)"])
def test_digest_that_cannot_be_read_is_refused(client: Client, old: bytes, value: str) -> None:
    answer = client.post("/inspect", content=old, headers={"Content-Digest": value})

    assert (answer.status_code, answer.json()["error_type"]) == (400, "invalid_digest")


@pytest.mark.parametrize("algorithm", ["sha-256", "sha-512"])
@pytest.mark.parametrize("accept", ["*/*", "application/zip"])
def test_answer_has_the_digest_that_is_wanted(
    client: Client, old: bytes, accept: str, algorithm: str
) -> None:
    headers = {"Accept": accept, "Want-Repr-Digest": f"{algorithm}=1"}

    answer = client.post("/migrate", content=old, headers=headers)

    assert answer.headers["repr-digest"] == field(answer.content, algorithm)
    assert "repr-digest" not in client.post("/migrate", content=old).headers


@pytest.mark.parametrize(
    ("value", "algorithm"),
    [
        ("sha-256=1", "sha-256"),
        ("sha-256=1, sha-512=3", "sha-512"),
        ("md5=10, sha-256=2", "sha-256"),
        ("sha-256=0", None),
        ("md5=10", None),
        ("sha-256", None),
        ("sha-256=11", None),
        ("sha-256=0.5", None),
        ("sha-256=(1 2)", None),
        ("((", None),
        ("", None),
    ],
)
def test_best_liked_algorithm_is_found(value: str, algorithm: str | None) -> None:
    assert wanted_algorithm({"Want-Repr-Digest": value}) == algorithm

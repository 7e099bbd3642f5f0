"""Formats, damage and the list of allowed globals, through curl and a real service."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save_file

from tests.acceptance.conftest import Service, running_service

pytestmark = pytest.mark.acceptance

RENAME = """
def handle(ckpt):
    for key in list(ckpt):
        ckpt["renamed." + key] = ckpt.pop(key)
    return ckpt
"""


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("strict")
    (folder / "migrations").mkdir()
    (folder / "migrations" / "0001_rename.py").write_text(RENAME)
    (folder / "allowed.txt").write_text("argparse.Namespace\n")
    with running_service(
        folder, MIGRATE_CKPT_ALLOWED_GLOBALS_FILE=str(folder / "allowed.txt")
    ) as service:
        yield service


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return {"a": torch.arange(12.0).view(3, 4), "b": torch.ones(5, dtype=torch.bfloat16)}


def post(service: Service, path: Path, **query: str) -> httpx.Response:
    with path.open("rb") as file:
        return httpx.post(
            f"{service.url}/migrate", params=query, files={"file": (path.name, file)}, timeout=60
        )


def test_a_state_dict_is_answered_as_safetensors(
    strict: Service, weights: dict, tmp_path: Path
) -> None:
    torch.save(weights, tmp_path / "old.pt")

    answer = post(strict, tmp_path / "old.pt", format="safetensors")

    assert answer.status_code == 200, answer.text
    assert 'filename="old.migrated.safetensors"' in answer.headers["content-disposition"]
    again = load_safetensors(answer.content)
    assert {key: value.tolist() for key, value in again.items()} == {
        f"renamed.{key}": value.tolist() for key, value in weights.items()
    }


def test_safetensors_are_migrated_as_what_they_are(
    strict: Service, weights: dict, tmp_path: Path
) -> None:
    save_file(weights, tmp_path / "old.safetensors", metadata={"format": "pt"})

    answer = post(strict, tmp_path / "old.safetensors")
    (tmp_path / "new.safetensors").write_bytes(answer.content)
    again = post(strict, tmp_path / "new.safetensors")

    assert set(load_safetensors(answer.content)) == {"renamed.a", "renamed.b"}
    assert again.content == answer.content


def test_the_stream_of_before_torch_1_6_comes_back_as_a_zip(
    strict: Service, weights: dict, tmp_path: Path
) -> None:
    torch.save(weights, tmp_path / "old.pt", _use_new_zipfile_serialization=False)

    answer = post(strict, tmp_path / "old.pt")

    assert answer.status_code == 200, answer.text
    (tmp_path / "new.pt").write_bytes(answer.content)
    assert set(torch.load(tmp_path / "new.pt", weights_only=True)) == {"renamed.a", "renamed.b"}
    assert answer.content.startswith(b"PK")


def test_a_damaged_upload_is_refused_before_anything_is_sent(
    strict: Service, weights: dict, tmp_path: Path
) -> None:
    torch.save(weights, tmp_path / "old.pt")
    data = bytearray((tmp_path / "old.pt").read_bytes())
    data[data.index(weights["a"].numpy().tobytes()) + 5] ^= 0xFF
    (tmp_path / "old.pt").write_bytes(data)

    answer = post(strict, tmp_path / "old.pt")

    assert (answer.status_code, answer.json()["error_type"]) == (422, "not_a_checkpoint")
    assert "damaged" in answer.json()["detail"]


def test_what_is_not_on_the_operators_list_is_refused_by_name(
    strict: Service, tmp_path: Path
) -> None:
    torch.save({"args": argparse.Namespace(), "path": Path("x")}, tmp_path / "old.pt")

    answer = post(strict, tmp_path / "old.pt")

    assert (answer.status_code, answer.json()["error_type"]) == (422, "refused_globals")
    assert answer.json()["globals"] == ["pathlib.PosixPath"]

"""The page for people: all of it from here, and nothing on it that could be made to do something else."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi import FastAPI

from app.main import create_app
from app.routes import page
from app.settings import Settings
from tests.app.conftest import Client

FOLDER = Path(page.__file__).resolve().parent.parent / "page"


@pytest.fixture(scope="module")
def client(start: Callable[[FastAPI], Client], tmp_path_factory: pytest.TempPathFactory) -> Client:
    folder: Path = tmp_path_factory.mktemp("migrations")
    return start(create_app(Settings(migrations_folder=folder, scratch_folder=folder.parent)))


def test_page_brings_everything_from_this_service(client: Client) -> None:
    text = client.get("/").text

    found = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert len(found) >= 4
    for reference in found:
        # Relative, for the service may stand behind a path of a proxy's.
        assert not reference.startswith(("/", "http"))
        assert client.get(f"/{reference}").status_code == 200


def test_modules_import_only_what_is_given_out(client: Client) -> None:
    scripts = list(FOLDER.glob("*.js"))
    assert len(scripts) > 3
    for script in scripts:
        for name in re.findall(r'from "([^"]+)"', script.read_text()):
            answer = client.get(f"/page/{name.removeprefix('./')}")
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/javascript")


def test_policy_lets_nothing_in_and_no_script_make_markup_of_text(client: Client) -> None:
    answer = client.get("/")

    policy = dict(
        part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert (
        re.findall(r"<script(?! type=\"module\" src=)|\son\w+=|<style|\sstyle=", answer.text) == []
    )
    for script in FOLDER.glob("*.js"):
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script.read_text()
        )


@pytest.mark.parametrize("asset", ["%2e%2e%2fmain.py", "index.html", "none"])
def test_nothing_else_is_given_out(client: Client, asset: str) -> None:
    assert client.get(f"/page/{asset}").status_code == 404


def test_plan_has_the_inspection_where_it_is_asked_for(client: Client, tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": torch.ones(2)}}, tmp_path / "old.ckpt")
    content = (tmp_path / "old.ckpt").read_bytes()

    def post(path: str) -> Any:
        return client.post(path, files={"file": content}).json()

    assert post("/plan?inspection=true")["inspection"] == post("/inspect")
    assert "inspection" not in post("/plan")

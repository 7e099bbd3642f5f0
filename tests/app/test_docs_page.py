from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urljoin

import pytest
from fastapi import FastAPI

from app.main import create_app
from app.settings import Settings
from tests.app.conftest import Client


@pytest.fixture(scope="module")
def client(start: Callable[[FastAPI], Client], tmp_path_factory: pytest.TempPathFactory) -> Client:
    folder: Path = tmp_path_factory.mktemp("migrations")
    return start(create_app(Settings(migrations_folder=folder, scratch_folder=folder.parent)))


def references(page: str) -> list[str]:
    return re.findall(r'(?:src|href)="([^"]+)"', page)


def test_page_brings_everything_from_this_service(client: Client) -> None:
    answer = client.get("/docs")

    found = references(answer.text)
    assert len(found) == 4
    assert not [reference for reference in found if "//" in reference]
    for reference in found:
        path = urljoin("http://service/docs", reference).removeprefix("http://service")
        assert client.get(path).status_code == 200


def test_policy_of_the_page_allows_what_is_in_it_and_no_script_from_elsewhere(
    client: Client,
) -> None:
    answer = client.get("/docs")

    policy = dict(
        part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == "'self'"
    assert policy["connect-src"] == "'self'"
    # A script in the page, or in an attribute, would not be run.
    assert re.findall(r"<script(?! src=)|\son\w+=", answer.text) == []


def test_page_starts_with_the_description_of_the_interface(client: Client) -> None:
    (url,) = re.findall(r'url: "([^"]+)"', client.get("/docs/start.js").text)

    assert client.get(f"/{url}").json()["info"]["title"] == "migrate-ckpt"


@pytest.mark.parametrize("asset", ["%2e%2e%2f__init__.py", "__init__.py", "none"])
def test_nothing_else_is_given_out(client: Client, asset: str) -> None:
    assert client.get(f"/docs/{asset}").status_code == 404

"""The page for people, in a real Chromium: a checkpoint is dropped, looked at, migrated and fetched.

With SCREENSHOTS=folder each test leaves pictures there, for a person to look at.
"""

from __future__ import annotations

import base64
import os
import shutil
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from app.access import new_token
from tests.acceptance.conftest import Service, eventually, running_service

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium (Debian's chromium)"),
    # Playwright leaves its pipes to the interpreter.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

PHONE = {"width": 360, "height": 740}
DESKTOP = {"width": 1100, "height": 800}
SETS = {
    "": {
        "0001_strip.py": '''"""Strip the prefix of a wrapper."""
from migrate_ckpt.operations import strip_prefix
operations = [strip_prefix("module")]
''',
        "0002_slow.py": '''"""Rename the hyper-parameter `lr`."""
import time
def handle(ckpt):
    time.sleep(ckpt.get("sleep", 0))
    ckpt["hyper_parameters"]["learning_rate"] = ckpt["hyper_parameters"].pop("lr")
    return ckpt
''',
    },
    "failing": {
        "0001_x.py": '''"""Cannot be done."""
from migrate_ckpt.operations import rename
operations = [rename("no.such.key", "other")]
'''
    },
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def written(folder: Path) -> Path:
    for name, files in SETS.items():
        place = folder / "migrations" / name
        place.mkdir(exist_ok=True)
        for file, code in files.items():
            (place / file).write_text(code)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written(tmp_path)


@pytest.fixture
def service(folder: Path) -> Iterator[Service]:
    pytest.importorskip("dbos", reason="the extra [jobs] is not installed")
    with running_service(folder, MIGRATE_CKPT_DATA_FOLDER=str(folder / "data")) as service:
        yield service


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "old.ckpt")


def checkpoint(path: Path, *, layers: int = 12, **values: Any) -> Path:
    weights = OrderedDict(
        (f"module.layers.{i}.{name}.weight", torch.ones(8, 8))
        for i in range(layers)
        for name in "qkvo"
    )
    ckpt = {
        "state_dict": weights,
        "hyper_parameters": {"lr": 0.1},
        "args": Namespace(seed=1),
        **values,
    }
    torch.save(ckpt, path)
    return path


@pytest.fixture
def page(browser: Any, service: Service) -> Iterator[Any]:
    yield from opened(browser, service)


def opened(browser: Any, service: Service, **options: Any) -> Iterator[Any]:
    """Open the page; it must have nothing to complain of in the end."""
    context = browser.new_context(**{"viewport": DESKTOP, "accept_downloads": True, **options})
    page = context.new_page()
    page.set_default_timeout(20_000)
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "console",
        lambda said: complaints.append(said.text) if "Content Security" in said.text else None,
    )
    page.goto(service.url)
    yield page
    context.close()
    assert complaints == []


def picture(page: Any, name: str) -> None:
    folder = os.environ.get("SCREENSHOTS")
    if folder:
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def choose(page: Any, path: Path) -> None:
    page.locator("#file").set_input_files(str(path))


def test_checkpoint_is_looked_at_migrated_and_fetched(page: Any, old: Path, tmp_path: Path) -> None:
    picture(page, "empty")
    choose(page, old)

    page.get_by_role("heading", name="2 migrations to run").wait_for()
    text = page.locator("#look").inner_text()
    assert "none: never migrated" in text
    assert "48 tensors" in text
    assert "argparse.Namespace" in page.locator("#look").text_content()
    picture(page, "looked-at")
    page.get_by_text("0001_strip").first.click()
    assert page.get_by_text("module.layers.0.q.weight").first.is_visible()
    picture(page, "changes")
    with page.expect_download() as download:
        page.get_by_role("button", name="Migrate it").click()
        page.get_by_role("heading", name="Done: 2 migrations ran").wait_for()
        picture(page, "done")
        page.locator("#result").get_by_text("Download the migrated checkpoint").click()
    download.value.save_as(tmp_path / "new.ckpt")
    migrated = torch.load(tmp_path / "new.ckpt", weights_only=False)
    assert next(iter(migrated["state_dict"])) == "layers.0.q.weight"
    assert migrated["hyper_parameters"] == {"learning_rate": 0.1}
    # It is among the recent jobs.
    assert eventually(lambda: "succeeded" in page.locator("#jobs-list").inner_text())


def test_what_is_migrated_already_has_nothing_to_run(
    page: Any, service: Service, old: Path
) -> None:
    answer = httpx.post(f"{service.url}/migrate", files={"file": old.read_bytes()})
    old.write_bytes(answer.content)

    choose(page, old)

    page.get_by_role("heading", name="Nothing to run").wait_for()
    assert "0001_strip, 0002_slow" in page.locator("#look").inner_text()
    assert not page.get_by_role("button", name="Migrate it").is_visible()


def test_run_is_cancelled(page: Any, tmp_path: Path) -> None:
    choose(page, checkpoint(tmp_path / "slow.ckpt", sleep=6))
    page.get_by_role("button", name="Migrate it").click()
    page.get_by_text("0002_slow (2 of 2)").first.wait_for()
    picture(page, "running")
    assert page.locator("#file").is_disabled()

    page.locator("#status").get_by_role("button", name="Cancel").click()

    page.get_by_text("Cancelled. Nothing has changed.").wait_for()
    assert eventually(lambda: "cancelled" in page.locator("#jobs-list").inner_text())


def test_another_file_takes_the_place_of_one_that_is_looked_at(
    page: Any, old: Path, tmp_path: Path
) -> None:
    large = tmp_path / "large.ckpt"
    with large.open("wb") as file:
        file.truncate(2 * 10**9)
    choose(page, large)
    page.get_by_text("Looks at large.ckpt").wait_for()

    choose(page, old)

    page.get_by_role("heading", name="2 migrations to run").wait_for()
    assert "old.ckpt" in page.locator("#look").inner_text()
    assert page.locator("#status").text_content() == ""
    assert page.locator("#result").text_content() == ""


@pytest.mark.parametrize("name", ["text.txt", "empty.ckpt"])
def test_wrong_file_is_refused_in_a_sentence(page: Any, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("no checkpoint" if name == "text.txt" else "")

    choose(page, path)

    page.get_by_role("alert").get_by_text("The file is").wait_for()
    picture(page, f"wrong-{name}")


def test_migration_that_would_fail_is_seen_before(page: Any, old: Path) -> None:
    page.get_by_label("Set of migrations").select_option("failing")

    choose(page, old)

    page.get_by_text("would fail").wait_for()
    assert "no.such.key" in page.locator("#look").inner_text()
    assert not page.get_by_role("button", name="Migrate it").is_visible()
    picture(page, "would-fail")


def test_names_in_a_checkpoint_are_text_and_no_markup(page: Any, tmp_path: Path) -> None:
    name = "<img src=x onerror=document.title='taken'><b>bold</b>"
    choose(page, checkpoint(tmp_path / f"{'<b>x'}.ckpt", **{name: 1}))

    page.get_by_role("heading", name="2 migrations to run").wait_for()
    page.get_by_text("All that is in it").click()
    assert page.get_by_text("<b>bold</b>").first.is_visible()
    assert page.title() == "migrate-ckpt"
    assert page.locator("#look b").count() == 0


def test_thousands_of_changes_are_searched(page: Any, tmp_path: Path) -> None:
    choose(page, checkpoint(tmp_path / "many.ckpt", layers=1500))
    page.get_by_role("heading", name="2 migrations to run").wait_for()
    page.get_by_text("0001_strip").first.click()

    page.get_by_label("Search changes of 0001_strip").fill("layers.1499.k")

    rows = page.get_by_role("table", name="changes of 0001_strip").locator("tbody tr")
    assert eventually(lambda: rows.count() == 1)
    assert "layers.1499.k.weight" in rows.first.inner_text()
    picture(page, "searched")


def test_keyboard_alone_will_do(page: Any, old: Path) -> None:
    choosers: list[Any] = []
    # Before anything else, for it takes a moment until the browser asks the test and not the desktop.
    page.on("filechooser", lambda chooser: choosers.append(chooser))
    page.get_by_text("0001_strip").first.wait_for()
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "file":
            break
    assert page.evaluate("document.activeElement.id") == "file"
    page.keyboard.press("Enter")
    # What has happened is heard of while the test waits.
    assert eventually(lambda: page.wait_for_timeout(100) or choosers)
    choosers[0].set_files(str(old))
    page.get_by_role("heading", name="2 migrations to run").wait_for()
    page.keyboard.press("Tab")
    for _ in range(10):
        if page.evaluate("document.activeElement.id") == "migrate":
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")

    page.get_by_role("heading", name="Done: 2 migrations ran").wait_for()
    assert page.evaluate("document.activeElement.id") == "done"


def test_file_is_dropped(page: Any, old: Path) -> None:
    transfer = page.evaluate_handle(
        """async (text) => {
            const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "dropped.ckpt"));
            return transfer;
        }""",
        base64.b64encode(old.read_bytes()).decode(),
    )

    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})

    page.get_by_role("heading", name="2 migrations to run").wait_for()
    assert "dropped.ckpt" in page.locator("#look").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_a_phone_in_light_and_dark(
    browser: Any, service: Service, old: Path, scheme: str
) -> None:
    for page in opened(browser, service, viewport=PHONE, color_scheme=scheme, has_touch=True):
        choose(page, old)
        page.get_by_role("heading", name="2 migrations to run").wait_for()
        picture(page, f"phone-{scheme}")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        back = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, back[4:-1].split(","))) < 200) is (scheme == "dark")


def test_token_is_asked_for_and_used(browser: Any, folder: Path, old: Path, tmp_path: Path) -> None:
    pytest.importorskip("dbos", reason="the extra [jobs] is not installed")
    token, entry = new_token("anna", "migrate,read")
    (folder / "tokens").write_text(f"{entry}\n")
    settings = {
        "MIGRATE_CKPT_TOKENS_FILE": str(folder / "tokens"),
        "MIGRATE_CKPT_DATA_FOLDER": str(folder / "data"),
    }
    with running_service(folder, **settings) as service:
        for page in opened(browser, service):
            page.get_by_label("This service asks for an access token").wait_for()
            assert page.locator("#problem").text_content() == ""
            picture(page, "token")
            page.get_by_label("This service asks for an access token").fill("another")
            page.get_by_role("button", name="Use it").click()
            page.get_by_role("alert").get_by_text("token").wait_for()
            page.get_by_label("This service asks for an access token").fill(token)
            page.get_by_role("button", name="Use it").click()
            page.get_by_text("0001_strip").first.wait_for()
            choose(page, old)
            page.get_by_role("button", name="Migrate it").click()
            page.get_by_role("heading", name="Done: 2 migrations ran").wait_for()
            with page.expect_download() as download:
                page.locator("#result").get_by_role("button", name="Download").click()
            download.value.save_as(tmp_path / "new.ckpt")
            assert (tmp_path / "new.ckpt").read_bytes()[:2] == b"PK"


def test_service_without_jobs_migrates_in_one_request(
    browser: Any, folder: Path, old: Path, tmp_path: Path
) -> None:
    with running_service(folder) as service:
        for page in opened(browser, service):
            assert not page.get_by_role("heading", name="Recent jobs").is_visible()
            choose(page, old)
            page.get_by_role("button", name="Migrate it").click()
            page.get_by_role("heading", name="Done: 2 migrations ran").wait_for()
            with page.expect_download() as download:
                page.get_by_role("button", name="Download the migrated checkpoint").click()
            download.value.save_as(tmp_path / "new.ckpt")
            assert download.value.suggested_filename == "old.migrated.ckpt"
            assert (tmp_path / "new.ckpt").read_bytes()[:2] == b"PK"


def test_large_file_does_not_freeze_the_tab(page: Any, tmp_path: Path) -> None:
    """While two gigabytes are on their way, what is typed is answered."""
    large = tmp_path / "large.ckpt"
    with large.open("wb") as file:
        file.truncate(2 * 10**9)
    page.evaluate(
        """() => {
            window.most = 0;
            let last = performance.now();
            setInterval(() => {
                const now = performance.now();
                window.most = Math.max(window.most, now - last);
                last = now;
            }, 20);
        }"""
    )

    choose(page, large)
    page.locator("#status progress").wait_for()
    page.wait_for_timeout(2000)

    assert page.evaluate("window.most") < 1000
    page.locator("#status").get_by_role("button", name="Cancel").click()
    page.get_by_text("Cancelled. Nothing has changed.").wait_for()

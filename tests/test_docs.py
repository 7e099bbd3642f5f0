"""The README is complete and true: its tables name what there is, its samples look like real answers, its code runs."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import httpx
import opentelemetry.environment_variables
import opentelemetry.sdk.environment_variables
import pytest
import torch
from fastapi import FastAPI
from pydantic import TypeAdapter

import migrate_ckpt
import migrate_ckpt.operations
from app.errors import STATUSES
from app.main import create_app
from app.run_facts import Phase
from app.settings import Settings
from app.span_export import ENDPOINTS, PROTOCOLS
from migrate_ckpt.history import records_key
from migrate_ckpt.linting.findings import CODES

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text()
PREFIX = "MIGRATE_CKPT_"

ORIGINAL = (REPOSITORY / "docs" / "from-the-original.md").read_text()
CODE_BLOCKS = re.findall(r"^```python\n(.*?)^```", README + ORIGINAL, re.DOTALL | re.MULTILINE)
SAMPLES = dict(re.findall(r"<!-- sample: (\w+) -->\n```json\n(.*?)```", README, re.DOTALL))


def table(header: str) -> list[list[str]]:
    """The rows below the table header that starts with this cell, each a list of cells."""
    _, _, after = README.partition(f"\n| {header} |")
    rows = after.split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def code_spans(text: str) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", text))


@pytest.fixture(scope="module")
def application() -> FastAPI:
    return create_app(Settings(migrations_folder=REPOSITORY / "migrations"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the README's files in it: old.ckpt and the example migrations."""
    (tmp_path / "migrations").symlink_to(REPOSITORY / "migrations")
    weights = {"model.head.weight": torch.ones(2)}
    torch.save(
        {"state_dict": weights, "hyper_parameters": {"lr": 0.1}, "epoch": 3}, tmp_path / "old.ckpt"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def routes(application: FastAPI) -> Iterator[str]:
    for path, operations in application.openapi()["paths"].items():
        yield from (f"{method.upper()} {path}" for method in operations)
    yield from ("GET /docs", f"GET {application.openapi_url}")


def error_types() -> set[str]:
    classes = [
        value
        for value in vars(migrate_ckpt.errors).values()
        if isinstance(value, type) and issubclass(value, migrate_ckpt.MigrateCkptError)
    ]
    return {error.error_type for error in classes if error is not migrate_ckpt.MigrateCkptError}


async def post(application: FastAPI, url: str) -> httpx.Response:
    transport = httpx.ASGITransport(app=application)
    async with (
        application.router.lifespan_context(application),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        return await client.post(url)


def keys(value: Any) -> Any:
    """The shape of JSON: the keys of its objects, and of the first object of its lists."""
    if isinstance(value, dict):
        return {key: keys(item) for key, item in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [keys(value[0])]
    return None


def test_every_route_is_in_the_table_and_no_other(application: FastAPI) -> None:
    documented = {span for row in table("request") for span in code_spans(row[0])}

    assert documented == set(routes(application))


def test_every_setting_is_in_the_table_with_its_default() -> None:
    rows = {row[0].strip("`"): row[1] for row in table("variable")}

    names = {PREFIX + name.upper(): field for name, field in Settings.model_fields.items()}
    assert set(rows) == {"HOST", "PORT", *names}
    for name, field in names.items():
        if rows[name].startswith("`"):
            documented = TypeAdapter(field.annotation).validate_python(rows[name].strip("`"))
            assert documented == field.default, name


def test_every_variable_in_the_text_is_a_setting() -> None:
    named = set(re.findall(rf"{PREFIX}[A-Z_]+[A-Z]", README))

    assert named <= {PREFIX + name.upper() for name in Settings.model_fields}


def test_every_error_type_is_in_the_table_with_its_status() -> None:
    documented = {row[0].strip("`"): row[1] for row in table("error_type")}

    without_status = dict.fromkeys(error_types() - set(STATUSES), "-")
    assert documented == {name: str(status) for name, status in STATUSES.items()} | without_status


def test_every_metric_is_in_the_table_with_its_labels(application: FastAPI) -> None:
    rows = {row[0].strip("`"): re.findall(r"`(\w+)`", row[1]) for row in table("metric")}

    metrics = application.state.telemetry.metrics
    assert rows == {name: list(labels) for name, labels in metrics.labels.items()}


def test_every_variable_of_opentelemetry_in_the_text_is_one_that_its_sdk_has() -> None:
    named = set(re.findall(r"`(OTEL_[A-Z_]+[A-Z])`", README))

    known = vars(opentelemetry.environment_variables) | vars(
        opentelemetry.sdk.environment_variables
    )
    assert {*ENDPOINTS, *PROTOCOLS} <= named <= set(known)


def test_every_part_of_a_request_is_in_the_table_of_spans() -> None:
    documented = [row[0].strip("`") for row in table("span")]

    assert set(documented[1:]) == {"queue", "upload", "response", *get_args(Phase)}


def test_every_command_is_in_the_table_and_no_other() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "migrate_ckpt.cli", "--help"], capture_output=True, text=True
    )
    commands = set(re.findall(r"^    (\w+)(?: |$)", done.stdout, re.MULTILINE))

    assert commands
    assert {row[0].split()[1] for row in table("command")} == commands


def test_every_exit_code_is_in_the_table() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "migrate_ckpt.cli", "--help"], capture_output=True, text=True
    )
    codes = re.findall(r"^  (\d+) ", done.stdout, re.MULTILINE)

    assert codes
    assert [row[0] for row in table("exit code")] == codes


def test_every_code_of_lint_is_in_the_table_with_its_meaning() -> None:
    documented = dict(table("code"))

    assert set(documented) == set(CODES)
    for code, text in CODES.items():
        assert documented[code].startswith(text)


def test_every_public_name_is_mentioned() -> None:
    mentioned = {word for span in code_spans(README) for word in re.findall(r"\w+", span)}

    assert set(migrate_ckpt.__all__) - mentioned - {"__version__"} == set()


def test_every_operation_is_in_the_section_on_them() -> None:
    section = README.partition("## Operations\n")[2].partition("\n## ")[0]
    mentioned = {word for span in code_spans(section) for word in re.findall(r"\w+", span)}

    assert set(migrate_ckpt.operations.__all__) - mentioned == set()


def test_every_make_target_is_mentioned() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):.*## ", makefile, re.MULTILINE)) - {"help"}

    assert {f"make {target}" for target in targets} <= code_spans(README)


def test_every_link_to_a_file_leads_somewhere() -> None:
    pages = [
        REPOSITORY / "README.md",
        *REPOSITORY.glob("[bdm]*/README.md"),
        *REPOSITORY.glob("docs/*.md"),
    ]
    links = [
        page.parent / link
        for page in pages
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    ]

    assert links
    assert [link for link in links if not link.exists()] == []


@pytest.mark.parametrize("code", CODE_BLOCKS, ids=lambda code: code.strip().splitlines()[-1])
def test_code_runs(code: str, folder: Path) -> None:
    (folder / "example.py").write_text(code)

    done = subprocess.run([sys.executable, "example.py"], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr


def test_sample_of_the_report_is_what_a_run_gives(folder: Path) -> None:
    report = migrate_ckpt.migrate_file("old.ckpt", "new.ckpt", folder="migrations")

    assert keys(json.loads(SAMPLES["report"])) == keys(report.to_dict())


def test_sample_of_the_header_is_what_a_run_gives(folder: Path) -> None:
    report = migrate_ckpt.migrate_file("old.ckpt", "new.ckpt", folder="migrations")

    assert keys(json.loads(SAMPLES["header"])) == keys(json.loads(report.to_header()))


def test_sample_of_the_plan_is_what_planning_gives(folder: Path) -> None:
    plan = migrate_ckpt.plan_file("old.ckpt", migrate_ckpt.read_set("migrations"))

    assert keys(json.loads(SAMPLES["plan"])) == keys(plan.to_dict())


def test_sample_of_the_changes_is_what_planning_with_them_gives(folder: Path) -> None:
    migrations = migrate_ckpt.read_set("migrations")

    plan = migrate_ckpt.plan_file("old.ckpt", migrations, with_changes=True).to_dict()

    assert keys(json.loads(SAMPLES["changes"])) == keys(plan["steps"][0])


def test_sample_of_the_history_is_what_is_kept() -> None:
    ckpt = migrate_ckpt.stamp({"hyper_parameters": Namespace()}, REPOSITORY / "migrations")

    sample = json.loads(SAMPLES["history"])
    assert set(sample) == {migrate_ckpt.ckpt_migration_key, records_key}
    for key in sample:
        assert keys(sample[key]) == keys(ckpt[key])


def test_sample_of_a_problem_is_what_a_refusal_gives(application: FastAPI) -> None:
    sample = json.loads(SAMPLES["problem"])

    answer = asyncio.run(post(application, f"{sample['instance']}?{sample['parameter']}=strict"))

    assert answer.json() == sample | {"request_id": answer.json()["request_id"]}

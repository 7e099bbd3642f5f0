"""The documents are what the library says, member by member."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter

from app import documents
from migrate_ckpt import inspect_file, migrate_file, plan_file, read_set

OPERATIONS = """
from migrate_ckpt.operations import rename
operations = [rename("a", "b")]
"""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations" / "0001_rename.py").write_text(OPERATIONS)
    (tmp_path / "migrations" / "0002_fail.py").write_text(
        "def handle(ckpt):\n    return ckpt['no']\n"
    )
    torch.save({"state_dict": {"a": torch.zeros(2)}, "epoch": 3}, tmp_path / "old.ckpt")
    return tmp_path / "old.ckpt"


def test_report_is_described(old: Path) -> None:
    folder = old.parent / "migrations"
    report = migrate_file(old, old.with_name("new.ckpt"), folder=folder, to="0001_rename")

    TypeAdapter(documents.Report).validate_python(report.to_dict(), strict=True)


@pytest.mark.parametrize("with_changes", [False, True])
def test_plan_is_described(old: Path, with_changes: bool) -> None:
    plan = plan_file(old, read_set(old.parent / "migrations"), with_changes=with_changes)

    TypeAdapter(documents.Plan).validate_python(plan.to_dict(), strict=True)


def test_inspection_is_described(old: Path) -> None:
    TypeAdapter(documents.Inspection).validate_python(inspect_file(old).to_dict(), strict=True)

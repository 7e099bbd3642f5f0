"""Edited migrations that are accepted as they are now."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from migrate_ckpt import (
    TargetExists,
    inspect_file,
    migrate_file,
    plan_file,
    read_set,
    repair_file,
)
from migrate_ckpt.cli import main

TEXT = '"""Rename."""\n\nfrom migrate_ckpt.operations import rename\n\noperations = [rename("{}", "{}")]\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "migrations"
    folder.mkdir()
    for number, name in enumerate("abc", 1):
        (folder / f"000{number}_{name}.py").write_text(TEXT.format(name, f"{name}{name}"))
    return folder


@pytest.fixture(params=["checkpoint", "flat state dict"])
def migrated(request: pytest.FixtureRequest, tmp_path: Path, folder: Path) -> Path:
    weights = {name: torch.randn(2) for name in "abc"}
    ckpt = {"state_dict": weights} if request.param == "checkpoint" else weights
    torch.save(ckpt, tmp_path / "old.ckpt")
    migrate_file(tmp_path / "old.ckpt", tmp_path / "new.ckpt", folder=folder)
    return tmp_path / "new.ckpt"


def edit(folder: Path, *stems: str) -> None:
    for stem in stems:
        path = folder / f"{stem}.py"
        path.write_text(path.read_text() + "\nnothing = None\n")


def test_changed_migrations_are_applied_ones_again(folder: Path, migrated: Path) -> None:
    edit(folder, "0001_a", "0003_c")
    assert plan_file(migrated, read_set(folder)).changed == ("0001_a", "0003_c")

    assert repair_file(migrated, migrated, folder=folder) == ("0001_a", "0003_c")

    plan = plan_file(migrated, read_set(folder), policy="strict")
    assert plan.applied == ("0001_a", "0002_b", "0003_c")


def test_only_what_is_named_is_accepted(folder: Path, migrated: Path) -> None:
    edit(folder, "0001_a", "0003_c")

    assert repair_file(migrated, migrated, folder=folder, names=["0003_c"]) == ("0003_c",)

    assert plan_file(migrated, read_set(folder)).changed == ("0001_a",)


def test_new_name_of_a_file_is_written_down(folder: Path, migrated: Path) -> None:
    (folder / "0002_b.py").rename(folder / "0002_better.py")

    assert repair_file(migrated, migrated, folder=folder) == ("0002_better",)
    assert plan_file(migrated, read_set(folder)).renamed == ()


def renumber(folder: Path, texts: dict[str, str]) -> None:
    for path in folder.glob("*.py"):
        path.unlink()
    for stem, letter in texts.items():
        (folder / f"{stem}.py").write_text(TEXT.format(letter, letter * 2))


@pytest.mark.parametrize("names", [(), ("0002",)])
def test_renumbered_files_are_accepted_together(
    folder: Path, migrated: Path, names: tuple[str, ...]
) -> None:
    renumber(folder, {"0001": "a", "0002": "b", "0003": "c"})
    repair_file(migrated, migrated, folder=folder)
    renumber(folder, {"0002": "a", "0003": "b", "0004": "c"})
    assert plan_file(migrated, read_set(folder)).applied == ("0002", "0003", "0004")

    assert repair_file(migrated, migrated, folder=folder, names=names) == ("0002", "0003", "0004")

    assert inspect_file(migrated).history.names == ("0002", "0003", "0004")
    assert not plan_file(migrated, read_set(folder), policy="strict").has_work


def test_file_in_the_place_of_another_is_not_accepted_without_it(
    folder: Path, migrated: Path
) -> None:
    renumber(folder, {"0001": "a", "0002": "b", "0003": "c"})
    repair_file(migrated, migrated, folder=folder)
    renumber(folder, {"0001": "a", "0002": "b", "0003": "x", "0004": "c"})

    assert repair_file(migrated, migrated, folder=folder, names=["0003"]) == ("0004", "0003")

    plan = plan_file(migrated, read_set(folder), policy="strict")
    assert plan.applied == ("0001", "0002", "0003", "0004")


def test_file_that_is_in_order_is_copied_byte_for_byte(folder: Path, migrated: Path) -> None:
    target = migrated.with_name("target.ckpt")

    assert repair_file(migrated, target, folder=folder) == ()

    assert target.read_bytes() == migrated.read_bytes()
    with pytest.raises(TargetExists):
        repair_file(migrated, target, folder=folder)


def test_command(
    folder: Path,
    migrated: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder.parent)
    edit(folder, "0001_a")

    assert main(["repair", "new.ckpt", "--in-place"]) == 0
    assert capsys.readouterr().out == "new.ckpt: accepted as they are now: 0001_a\n"
    assert main(["repair", "new.ckpt", "--in-place"]) == 0
    assert capsys.readouterr().out == "new.ckpt: nothing to repair\n"
    with pytest.raises(SystemExit, match="2"):
        main(["repair", "new.ckpt", "--in-place", "--accept", "0009_no"])

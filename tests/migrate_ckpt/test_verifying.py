from __future__ import annotations

import hashlib
from collections import OrderedDict

import pytest
import torch

from migrate_ckpt import (
    InvalidManifest,
    ManifestNotMet,
    manifest_of,
    migrate_file,
    migrate_from_folder,
    plan_file,
    read_set,
)

RENAME = (
    '"""Rename."""\nfrom migrate_ckpt.operations import rename\noperations = [rename("a", "b")]\n'
)
HANDLE = '"""Again."""\ndef handle(ckpt):\n    w = ckpt["state_dict"]\n    w["c"] = w.pop("b")\n    return ckpt\n'
GOOD = {"c": torch.zeros(2, 3)}
BAD = {"c": torch.zeros(2, 4), "d": torch.zeros(1)}


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "migrations"
    path.mkdir()
    (path / "0001_rename.py").write_text(RENAME)
    (path / "0002_again.py").write_text(HANDLE)
    return path


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "old.ckpt"
    torch.save({"state_dict": {"a": torch.zeros(2, 3)}}, path)
    return path


def declare(folder, state_dict) -> None:
    (folder / "manifest.json").write_text(manifest_of(state_dict).to_json())


def test_result_that_meets_the_manifest_is_written(tmp_path, folder, old):
    declare(folder, GOOD)

    report = migrate_file(old, tmp_path / "new.ckpt", folder=folder)

    assert report.ran == ("0001_rename", "0002_again")
    # What is up to date already is held to it as well.
    assert not migrate_file(tmp_path / "new.ckpt", tmp_path / "same.ckpt", folder=folder).ran


def test_result_that_does_not_meet_the_manifest_is_not_written(tmp_path, folder, old):
    declare(folder, BAD)
    before = hashlib.sha256(old.read_bytes()).digest()

    with pytest.raises(ManifestNotMet) as caught:
        migrate_file(old, old, folder=folder)

    assert hashlib.sha256(old.read_bytes()).digest() == before
    assert str(caught.value) == (
        "The migrated checkpoint is not what the set's manifest.json says: 1 missing, 1 shape. "
        "The first is missing d: expected float32 [1], found nothing."
    )
    data = caught.value.to_dict()
    assert data["error_type"] == "manifest_not_met"
    assert data["difference_count"] == 2
    assert data["report"]["ran"] == ["0001_rename", "0002_again"]


def test_run_that_stops_before_the_end_is_not_held_to_it(tmp_path, folder, old):
    declare(folder, BAD)

    report = migrate_file(old, tmp_path / "new.ckpt", folder=folder, to="0001_rename")

    assert report.pending == ("0002_again",)


def test_up_to_date_file_that_does_not_meet_it_is_refused(tmp_path, folder, old):
    new = tmp_path / "new.ckpt"
    migrate_file(old, new, folder=folder)
    declare(folder, BAD)

    with pytest.raises(ManifestNotMet, match="1 missing, 1 shape"):
        migrate_file(new, tmp_path / "other.ckpt", folder=folder)


def test_result_without_a_state_dict_is_refused(tmp_path, folder, old):
    declare(folder, GOOD)
    (folder / "0003_drop.py").write_text(
        '"""Drop."""\ndef handle(ckpt):\n    return {"epoch": 1}\n'
    )

    with pytest.raises(ManifestNotMet, match="it has no state dict to compare"):
        migrate_file(old, tmp_path / "new.ckpt", folder=folder)


def test_in_memory_the_folder_is_held_to_its_manifest_too(folder):
    declare(folder, BAD)
    ckpt = {"state_dict": {"a": torch.zeros(2, 3)}}

    with pytest.raises(ManifestNotMet):
        migrate_from_folder(ckpt, folder)

    assert list(ckpt["state_dict"]) == ["a"]
    declare(folder, GOOD)
    migrated, done = migrate_from_folder(ckpt, folder)
    assert len(done) == 2
    assert migrate_from_folder(migrated, folder) == (migrated, [])


def test_history_in_a_flat_state_dict_is_no_difference(tmp_path):
    folder = tmp_path / "migrations"
    folder.mkdir()
    (folder / "0001_rename.py").write_text(RENAME)
    declare(folder, {"b": torch.zeros(2)})

    migrated, _ = migrate_from_folder(OrderedDict(a=torch.zeros(2)), folder)

    assert migrated["_migrate-ckpt-migrations"] == ["0001_rename"]


def test_manifest_counts_in_the_digest_of_the_set(folder):
    before = read_set(folder).digest
    declare(folder, GOOD)

    assert read_set(folder).digest != before


def test_broken_manifest_is_found_when_the_set_is_read(folder):
    (folder / "manifest.json").write_text("{}")

    with pytest.raises(InvalidManifest):
        read_set(folder)


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "by a function"])
def test_plan_with_changes_says_that_the_manifest_will_not_be_met(folder, old, declared):
    declare(folder, BAD)
    if declared:
        (folder / "0002_again.py").write_text(RENAME.replace('"a", "b"', '"b", "c"'))

    plan = plan_file(old, read_set(folder), with_changes=True)

    assert plan.failing is not None
    assert plan.failing.name == "0002_again"
    preview = plan.failing.preview.to_dict()
    assert preview["error"]["error_type"] == "manifest_not_met"
    assert preview["counts"] == {"renamed": 1}

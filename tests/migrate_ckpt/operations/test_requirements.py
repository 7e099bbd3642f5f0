from __future__ import annotations

from pathlib import Path

import pytest
import torch

from migrate_ckpt import (
    InvalidMigrationFile,
    MigrationFailed,
    RequirementsNotMet,
    get_folder_migrations,
    migrate_file,
    migrate_from_folder,
    read_checkpoint,
)
from migrate_ckpt.history import read_history
from migrate_ckpt.operations import requires_key, requires_value
from tests.migrate_ckpt.conftest import WriteFolder

CKPT = {
    "state_dict": {
        "encoder.0.weight": torch.ones(3, 768),
        "encoder.1.weight": torch.ones(4, 768),
        "head.weight": torch.ones(2, dtype=torch.bfloat16),
    },
    "hyper_parameters": {"arch": "resnet", "depth": 1},
}

HANDLE = """
from migrate_ckpt.operations import requires_key, requires_value

requires = {requires}


def handle(ckpt):
    ckpt["seen"] = True
    return ckpt
"""
DECLARED = """
from migrate_ckpt.operations import requires_key, requires_value, set_value

requires = {requires}
operations = [set_value("seen", True)]
"""
FORMS = pytest.mark.parametrize("form", [HANDLE, DECLARED], ids=["handle", "declared"])


@pytest.fixture
def old(tmp_path: Path) -> Path:
    torch.save(CKPT, tmp_path / "old.ckpt")
    return tmp_path / "old.ckpt"


@pytest.mark.parametrize(
    "requirement",
    [
        requires_key("encoder.0.weight"),
        requires_key("encoder.{i}.weight", shape=[None, 768], dtype=torch.float32),
        requires_key("head.weight", dtype="bfloat16", section="state_dict"),
        requires_value("hyper_parameters.arch"),
        requires_value("hyper_parameters.arch", "vit", "resnet"),
    ],
    ids=str,
)
def test_requirement_is_met(requirement: object) -> None:
    assert requirement.unmet(CKPT) is None  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("requirement", "sentence"),
    [
        (requires_key("decoder.{i}.weight"), "state_dict has no key 'decoder.{i}.weight'."),
        (
            requires_key("encoder.{i}.weight", shape=[3, None]),
            "In state_dict, 'encoder.1.weight' must be a tensor of shape [3, any], "
            "and is float32[4, 768].",
        ),
        (
            requires_key("head.weight", dtype="float32", shape=[2]),
            "In state_dict, 'head.weight' must be float32[2], and is bfloat16[2].",
        ),
        (
            requires_key("a", section="ema"),
            "There is no section 'ema': the checkpoint itself has state_dict, hyper_parameters.",
        ),
        (
            requires_value("hyper_parameters.family"),
            "There is no 'hyper_parameters.family': hyper_parameters has arch, depth.",
        ),
        (
            requires_value("hyper_parameters.arch", "vit", "bert"),
            "hyper_parameters.arch must be 'vit' or 'bert', and is 'resnet'.",
        ),
        (
            requires_value("hyper_parameters.depth", True),
            "hyper_parameters.depth must be True, and is 1.",
        ),
    ],
    ids=["key", "shape", "dtype", "section", "path", "value", "type"],
)
def test_what_is_missing_is_said_in_a_sentence(requirement: object, sentence: str) -> None:
    assert requirement.unmet(CKPT) == sentence  # type: ignore[attr-defined]


@FORMS
def test_checkpoint_that_meets_the_requirements_is_migrated(
    form: str, old: Path, write_folder: WriteFolder
) -> None:
    folder = write_folder({"1_x.py": form.format(requires='requires_key("head.weight")')})

    report = migrate_file(old, old, folder=folder)

    assert report.ran == ("1_x",)
    assert read_checkpoint(old)["seen"] is True


@FORMS
def test_checkpoint_that_does_not_is_refused_untouched(
    form: str, old: Path, write_folder: WriteFolder
) -> None:
    requires = '[requires_key("tail.weight"), requires_value("lr"), requires_key("head.weight")]'
    before = old.read_bytes()

    with pytest.raises(RequirementsNotMet, match=r"1_x \(1 of 1\) is not for this") as caught:
        migrate_file(old, old, folder=write_folder({"1_x.py": form.format(requires=requires)}))

    assert caught.value.missing == (
        "state_dict has no key 'tail.weight'.",
        "There is no 'lr': the checkpoint itself has state_dict, hyper_parameters.",
    )
    assert caught.value.to_dict()["error_type"] == "requirements_not_met"
    assert isinstance(caught.value, MigrationFailed)
    assert old.read_bytes() == before


@FORMS
def test_migration_that_does_not_apply_is_recorded_as_applied(
    form: str, old: Path, write_folder: WriteFolder
) -> None:
    requires = 'requires_key("tail.weight", otherwise="not_applicable")'
    files = {"1_x.py": form.format(requires=requires), "2_y.py": form.format(requires="[]")}

    folder = write_folder(files)
    report = migrate_file(old, old, folder=folder)

    assert (report.ran, report.not_applicable) == (("2_y",), ("1_x",))
    assert (report.applied, report.pending) == (("1_x", "2_y"), ())
    assert report.warnings == (
        "Not applicable, and recorded as applied: 1_x. state_dict has no key 'tail.weight'.",
    )
    assert read_history(read_checkpoint(old)).names == ("1_x", "2_y")
    assert migrate_file(old, old, folder=folder).ran == ()


def test_one_refusal_among_the_unmet_refuses(old: Path, write_folder: WriteFolder) -> None:
    requires = '[requires_key("a", otherwise="not_applicable"), requires_key("b")]'

    with pytest.raises(RequirementsNotMet):
        migrate_file(old, old, folder=write_folder({"1_x.py": HANDLE.format(requires=requires)}))


def test_requirements_see_what_the_migrations_before_did(
    old: Path, write_folder: WriteFolder
) -> None:
    files = {
        "1_x.py": "from migrate_ckpt.operations import add\n\noperations = [add('new', 0)]\n",
        "2_y.py": HANDLE.format(requires='requires_key("new", shape=[])'),
    }

    assert migrate_file(old, old, folder=write_folder(files)).ran == ("1_x", "2_y")


def test_requirements_hold_in_memory_too(write_folder: WriteFolder) -> None:
    text = HANDLE.format(requires='requires_key("a", otherwise="not_applicable")')

    migrated, done = migrate_from_folder(CKPT, write_folder({"1_x.py": text}))  # type: ignore[arg-type]

    assert done == []
    assert "seen" not in migrated
    assert migrated["_migrate-ckpt-migrations"] == ["1_x"]


@pytest.mark.parametrize("value", ["'head.weight'", "[1]", "requires_key"])
def test_requirements_of_another_kind_are_refused(value: str, write_folder: WriteFolder) -> None:
    with pytest.raises(InvalidMigrationFile, match="must be a requirement"):
        get_folder_migrations(write_folder({"1_x.py": HANDLE.format(requires=value)}))


def test_unknown_consequence_is_refused_when_it_is_written() -> None:
    with pytest.raises(ValueError, match="'refuse' or 'not_applicable'"):
        requires_key("a", otherwise="skip")  # type: ignore[arg-type]

"""Optimizers in runs of whole folders: reports, plans, functions, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from migrate_ckpt import cli
from migrate_ckpt.errors import InvalidMigrationFile, MigrationFailed, OptimizerNotFollowed
from migrate_ckpt.files import migrate_file, plan_file, read_checkpoint
from migrate_ckpt.folder import read_folder
from migrate_ckpt.in_memory import migrate_from_folder
from migrate_ckpt.loader import get_folder_migrations
from migrate_ckpt.report import Report

from .conftest import marked, moments
from .networks import facts

IMPORTS = (
    '"""X."""\nfrom migrate_ckpt.operations import drop_value, follow, rename, set_value, split\n'
)
SPLIT = f'{IMPORTS}operations = [split("b.w", ["b.x.w", "b.y.w"])]\n'
FUNCTION = f"""{IMPORTS}
def handle(ckpt):
    weights = ckpt["state_dict"]
    weights["z.w"] = weights.pop("a.w")
    return ckpt
"""
RENAMES = f'{FUNCTION}\noptimizer = follow(renames={{"a.w": "z.w"}})\n'

Migrate = Callable[..., tuple[Any, Report]]


@pytest.fixture
def migrate(tmp_path: Path) -> Migrate:
    """Migrate a checkpoint as a file, by migrations of these texts."""

    def run(ckpt: Any, *texts: str) -> tuple[Any, Report]:
        torch.save(ckpt, tmp_path / "old.ckpt")
        report = migrate_file(
            tmp_path / "old.ckpt", tmp_path / "new.ckpt", folder=write(tmp_path, *texts)
        )
        return read_checkpoint(tmp_path / "new.ckpt"), report

    return run


def write(tmp_path: Path, *texts: str) -> Path:
    folder = tmp_path / "migrations"
    folder.mkdir(exist_ok=True)
    for number, text in enumerate(texts, 1):
        (folder / f"{number:04}_x.py").write_text(text)
    return folder


def test_report_says_which_migrations_the_optimizer_has_followed(migrate: Migrate) -> None:
    other = f'{IMPORTS}operations = [set_value("epoch", 3)]\n'

    ckpt, report = migrate(marked(["a.w", "b.w"]), SPLIT, other)

    assert moments(ckpt) == [0, 1, 1]
    assert report.to_dict()["optimizer"] == {"followed": ["0001_x"], "not_followed": []}
    assert report.warnings == ()


def test_file_without_an_optimizer_has_nothing_that_follows(migrate: Migrate) -> None:
    ckpt = marked(["a.w", "b.w"])
    del ckpt["optimizer"]

    _, report = migrate(ckpt, SPLIT, FUNCTION)

    assert report.to_dict()["optimizer"] == {"followed": [], "not_followed": []}
    assert report.warnings == ()


def test_function_that_says_nothing_is_reported_as_not_followed(migrate: Migrate) -> None:
    ckpt = marked(["a.w", "b.w"])
    before = facts(ckpt["optimizer"])

    migrated, report = migrate(ckpt, FUNCTION)

    assert facts(migrated["optimizer"]) == before
    assert report.to_dict()["optimizer"] == {"followed": [], "not_followed": ["0001_x"]}
    assert report.warnings[0].startswith("0001_x: optimizer not followed: optimizer may not fit")


def test_function_that_leaves_the_parameters_alone_needs_to_say_nothing(migrate: Migrate) -> None:
    text = '"""X."""\ndef handle(ckpt):\n    ckpt["epoch"] = 3\n    return ckpt\n'

    _, report = migrate(marked(["a.w", "b.w"]), text)

    assert report.optimizer_not_followed == ()


def test_function_that_lets_two_parameters_change_places_is_reported(migrate: Migrate) -> None:
    """Keys, order and shapes are what they were, and every state belongs to the other one."""
    swap = 'w["a.w"], w["b.w"] = w["b.w"], w["a.w"]'
    text = f'"""X."""\ndef handle(ckpt):\n    w = ckpt["state_dict"]\n    {swap}\n    return ckpt\n'

    _, report = migrate(marked(["a.w", "b.w"]), text)

    assert report.optimizer_not_followed == ("0001_x",)


@pytest.mark.parametrize("name", ["state_dict", "net"])
def test_function_is_reported_wherever_the_parameters_stand(name: str, migrate: Migrate) -> None:
    ckpt = marked(["a.w", "b.w"])
    ckpt[name] = ckpt.pop("state_dict")

    _, report = migrate(ckpt, FUNCTION.replace("state_dict", name))

    assert report.optimizer_not_followed == ("0001_x",)


def test_function_that_takes_the_optimizer_out_needs_to_say_nothing(migrate: Migrate) -> None:
    text = FUNCTION.replace("    return", '    del ckpt["optimizer"]\n    return')

    _, report = migrate(marked(["a.w", "b.w"]), text)

    assert report.optimizer_not_followed == ()
    assert report.warnings == ()


def test_optimizer_that_an_operation_takes_out_follows_nothing(migrate: Migrate) -> None:
    ckpt = marked(["a.w", "b.w"])
    ckpt["state_dict"]["who.knows"] = torch.zeros(4, 4)
    text = f'{IMPORTS}operations = [split("b.w", ["x", "y"]), drop_value("optimizer")]\n'

    migrated, report = migrate(ckpt, text)

    assert "optimizer" not in migrated
    assert report.optimizer_followed == ()


def test_function_that_says_what_it_renames_is_followed(migrate: Migrate) -> None:
    """It puts the key at the end, which is not to mean that the parameter comes last."""
    ckpt, report = migrate(marked(["a.w", "b.w"], names=[["a.w", "b.w"]]), RENAMES)

    assert report.optimizer_followed == ("0001_x",)
    assert list(ckpt["state_dict"]) == ["z.w", "b.w"]
    assert ckpt["optimizer"]["param_groups"][0]["param_names"] == ["z.w", "b.w"]
    assert moments(ckpt) == [0, 1]


def test_function_that_does_not_do_what_it_says_is_refused(migrate: Migrate) -> None:
    text = RENAMES.replace('pop("a.w")', 'pop("b.w")')

    with pytest.raises(MigrationFailed, match="does not do what its `renames` say") as caught:
        migrate(marked(["a.w", "b.w"]), text)

    assert isinstance(caught.value.__cause__, OptimizerNotFollowed)


def test_after_a_function_that_is_not_followed_nothing_is_inferred(migrate: Migrate) -> None:
    with pytest.raises(MigrationFailed, match="an earlier migration has not taken it along"):
        migrate(marked(["a.w", "b.w"]), FUNCTION, SPLIT)


def test_after_it_names_are_still_certain(migrate: Migrate) -> None:
    ckpt = marked(["a.w", "b.w"], names=[["b.w"]])

    migrated, report = migrate(ckpt, FUNCTION, SPLIT)

    assert report.optimizer_not_followed == ("0001_x",)
    assert report.optimizer_followed == ("0002_x",)
    assert moments(migrated) == [1, 1]


def test_refusal_names_operation_and_reason_and_leaves_no_file(
    migrate: Migrate, tmp_path: Path
) -> None:
    ckpt = marked(["a.w", "b.w"])
    ckpt["state_dict"]["who.knows"] = torch.zeros(4, 4)

    with pytest.raises(MigrationFailed, match="its operation 1 of 1, split") as caught:
        migrate(ckpt, SPLIT)

    cause = caught.value.to_dict()["cause"]
    assert cause["error_type"] == "optimizer_not_followed"
    assert not (tmp_path / "new.ckpt").exists()


def test_declaration_in_the_file_is_heard(migrate: Migrate) -> None:
    text = f'{IMPORTS}operations = [rename({{"a.w": "b.w", "b.w": "a.w"}})]\n'

    with pytest.raises(MigrationFailed, match=r"'b\.w' and 'a\.w' have changed places"):
        migrate(marked(["a.w", "b.w"]), text)

    ckpt, _ = migrate(marked(["a.w", "b.w"]), text + 'optimizer = follow(order_after=["a", "b"])\n')
    assert moments(ckpt) == [1, 0]
    assert list(ckpt["state_dict"]) == ["a.w", "b.w"]


def test_class_that_only_lists_its_modules_in_another_order_needs_no_operation(
    migrate: Migrate,
) -> None:
    text = f'{IMPORTS}operations = []\noptimizer = follow(order_after=["b", "a"])\n'

    ckpt, report = migrate(marked(["a.w", "b.w"]), text)

    assert moments(ckpt) == [1, 0]
    assert list(ckpt["state_dict"]) == ["b.w", "a.w"]
    assert report.optimizer_followed == ("0001_x",)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"{SPLIT}optimizer = 3\n", "must be a `follow"),
        (f"{SPLIT}optimizer = [follow(), follow()]\n", "two declarations for one optimizer"),
        (f'{SPLIT}optimizer = follow(renames={{"a": "b"}})\n', "`renames`, which are for a file"),
    ],
    ids=["no declaration", "two", "renames beside operations"],
)
def test_wrong_declaration_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidMigrationFile, match=reason):
        get_folder_migrations(write(tmp_path, text))


def test_plan_shows_what_becomes_of_the_states_without_reading_one(tmp_path: Path) -> None:
    torch.save(marked(["a.w", "b.w"]), tmp_path / "old.ckpt")
    migrations = read_folder(write(tmp_path, SPLIT))

    plan = plan_file(tmp_path / "old.ckpt", migrations, with_changes=True)

    preview = plan.steps[0].preview
    assert preview is not None
    assert preview.error is None
    changes = {
        (change.kind, ".".join(change.after.path), change.after.shape)
        for change in preview.changes or ()
        if change.after is not None
    }
    assert ("changed", "optimizer.state.1.exp_avg", (2, 4)) in changes
    assert ("added", "optimizer.state.2.exp_avg", (2, 4)) in changes


def test_plan_foretells_a_refusal(tmp_path: Path) -> None:
    ckpt = marked(["a.w", "b.w"])
    ckpt["state_dict"]["who.knows"] = torch.zeros(4, 4)
    torch.save(ckpt, tmp_path / "old.ckpt")

    plan = plan_file(tmp_path / "old.ckpt", read_folder(write(tmp_path, SPLIT)), with_changes=True)

    assert plan.failing is not None
    assert plan.failing.name == "0001_x"


def test_command_prints_what_was_followed_and_what_was_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(marked(["a.w", "b.w"], names=[["b.w"]]), tmp_path / "old.ckpt")
    folder = write(tmp_path, FUNCTION, SPLIT)

    code = cli.main(
        [
            "run",
            str(tmp_path / "old.ckpt"),
            "-o",
            str(tmp_path / "new.ckpt"),
            "--folder",
            str(folder),
        ]
    )

    shown = capsys.readouterr().out
    assert code == 0
    assert "warning: 0001_x: optimizer not followed: optimizer may not fit" in shown
    assert "  optimizer followed: 0002_x" in shown


def test_report_is_json(migrate: Migrate) -> None:
    _, report = migrate(marked(["a.w", "b.w"]), SPLIT)

    assert json.loads(json.dumps(report.to_dict()))["optimizer"]["followed"] == ["0001_x"]


def test_in_memory_what_is_not_followed_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ckpt, _ = migrate_from_folder(marked(["a.w", "b.w"]), write(tmp_path, FUNCTION))

    assert caplog.messages == ["optimizer not followed: 0001_x"]
    assert "z.w" in ckpt["state_dict"]


def test_in_memory_the_optimizer_that_was_passed_in_stays_as_it_was(tmp_path: Path) -> None:
    old = marked(["a.w", "b.w"])
    before = facts(old)

    ckpt, _ = migrate_from_folder(old, write(tmp_path, SPLIT))

    assert moments(ckpt) == [0, 1, 1]
    assert facts(old) == before


def test_callback_of_a_declared_migration_lets_the_optimizer_follow(tmp_path: Path) -> None:
    [migration] = get_folder_migrations(write(tmp_path, SPLIT))

    assert moments(migration.callback(marked(["a.w", "b.w"]))) == [0, 1, 1]

"""Several migrations written as one: who gets which, and that all end the same."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from migrate_ckpt import (
    FolderError,
    HistoryRefused,
    InvalidMigrationFile,
    UndoRefused,
    UnknownMigration,
    migrate_file,
    plan_file,
    read_checkpoint,
    read_set,
    revert_file,
    squash,
)
from migrate_ckpt.cli import main
from migrate_ckpt.comparison import find_unlike
from migrate_ckpt.linting.folder_lint import lint_folder

HEAD = '"""{}."""\n\nfrom migrate_ckpt.operations import *  # noqa: F403\n\noperations = [{}]\n'
FILES = {
    "0001_rename": 'rename("a.w", "b.w"), add("extra", 1)',
    "0002_again": 'rename("b.w", "c.w"), drop("extra"), rename_value("lr", "rate")',
    "0003_turn": 'transpose("c.w"), rename("x.{i}.w", "y.{i}.w")',
    "0004_turn_back": 'transpose("c.w"), rename("y.{j}.w", "z.{j}.w")',
    "0005_after": 'rename("c.w", "d.w")',
}
NAMES = list(FILES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "migrations"
    folder.mkdir()
    for name, operations in FILES.items():
        text = HEAD.format(name, operations).replace("import *", f"import {_verbs(operations)}")
        (folder / f"{name}.py").write_text(text.replace("  # noqa: F403", ""))
    return folder


def _verbs(operations: str) -> str:
    known = ["add", "drop", "rename", "rename_value", "transpose"]
    return ", ".join(verb for verb in known if f"{verb}(" in operations)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    weights = {"a.w": torch.randn(2, 3), "x.0.w": torch.randn(2), "x.1.w": torch.randn(3)}
    torch.save({"state_dict": weights, "lr": 0.1}, tmp_path / "old.ckpt")
    return tmp_path / "old.ckpt"


def squashed_folder(folder: Path, first: str = NAMES[0], last: str = NAMES[3]) -> Path:
    copied = folder.with_name("squashed")
    shutil.copytree(folder, copied, ignore=shutil.ignore_patterns("__pycache__"))
    squash(copied, first, last)
    return copied


def migrated(source: Path, folder: Path, **options: Any) -> Any:
    target = source.with_name(f"{source.stem}.{folder.name}.made")
    report = migrate_file(source, target, folder=folder, force=True, **options)
    return report, read_checkpoint(target)


def test_what_it_writes_is_merged(folder: Path) -> None:
    made = squash(folder, NAMES[0], NAMES[3])

    assert made.path.name == "0004_turn_back_squashed.py"
    assert made.replaces == tuple(NAMES[:4])
    assert (made.count_before, made.count) == (9, 3)
    assert made.path.read_text() == (
        '"""Do in one what 4 migrations do.\n\n* 0001_rename.\n* 0002_again.\n* 0003_turn.\n* 0004_turn_back.\n"""\n\n'
        "from migrate_ckpt.operations import rename, rename_value\n\n"
        'replaces = ["0001_rename", "0002_again", "0003_turn", "0004_turn_back"]\n\n'
        "operations = [\n"
        '    rename("a.w", "c.w"),\n'
        '    rename_value("lr", "rate"),\n'
        '    rename("x.{i}.w", "z.{i}.w"),\n'
        "]\n"
    )


@pytest.mark.parametrize("had", [None, *NAMES])
def test_checkpoints_at_every_state_in_between_end_the_same(
    folder: Path, old: Path, had: str | None
) -> None:
    source = old
    if had is not None:
        source = old.with_name("between.ckpt")
        migrate_file(old, source, folder=folder, to=had)

    _, by_old_way = migrated(source, folder)
    report, by_new_way = migrated(source, squashed_folder(folder))

    assert find_unlike(by_old_way, by_new_way) == []
    expected = ["0004_turn_back_squashed", "0005_after"]
    if had is not None:
        expected = NAMES[NAMES.index(had) + 1 :]
    assert list(report.ran) == expected


@pytest.mark.parametrize("to", NAMES)
def test_stopping_in_between_is_as_before(folder: Path, old: Path, to: str) -> None:
    _, by_old_way = migrated(old, folder, to=to)
    _, by_new_way = migrated(old, squashed_folder(folder), to=to)

    assert find_unlike(by_old_way, by_new_way) == []


def test_second_run_finds_nothing_to_do(folder: Path, old: Path) -> None:
    squashed = squashed_folder(folder)
    migrate_file(old, old, folder=squashed)

    assert migrate_file(old, old, folder=squashed, policy="strict").ran == ()
    plan = plan_file(old, read_set(squashed))
    assert plan.names("replaced") == tuple(NAMES[:4])
    assert plan.missed == plan.unknown == plan.pending == ()


def test_originals_may_go_once_nobody_is_in_between(folder: Path, old: Path) -> None:
    done, between = old.with_name("done.ckpt"), old.with_name("between.ckpt")
    migrate_file(old, done, folder=folder)
    migrate_file(old, between, folder=folder, to=NAMES[1])
    squashed = squashed_folder(folder)
    for name in NAMES[:4]:
        (squashed / f"{name}.py").unlink()

    assert migrated(old, squashed)[0].ran == ("0004_turn_back_squashed", "0005_after")
    assert migrated(done, squashed, policy="strict")[0].ran == ()
    with pytest.raises(HistoryRefused, match=r"lack|not in the folder: 0003_turn, 0004_turn_back"):
        migrated(between, squashed)


def test_it_is_taken_back_as_a_whole(folder: Path, old: Path) -> None:
    (folder / "0001_rename.py").write_text(
        HEAD.format("x", 'rename("a.w", "b.w")').replace("*", "rename")
    )
    (folder / "0002_again.py").write_text(
        HEAD.format("x", 'rename("b.w", "c.w")').replace("*", "rename")
    )
    squashed = squashed_folder(folder)
    new = old.with_name("new.ckpt")
    migrate_file(old, new, folder=squashed)

    with pytest.raises(UndoRefused, match=r"0002_again is none of the migrations"):
        revert_file(new, old.with_name("back.ckpt"), folder=squashed, to="0002_again")
    revert_file(new, old.with_name("back.ckpt"), folder=squashed)

    assert find_unlike(read_checkpoint(old), read_checkpoint(old.with_name("back.ckpt"))) == []


def test_those_that_ran_before_are_taken_back_by_the_squashed_one(folder: Path, old: Path) -> None:
    for name, pair in (("0001_rename", ("a.w", "b.w")), ("0002_again", ("b.w", "c.w"))):
        (folder / f"{name}.py").write_text(
            HEAD.format(name, f"rename{pair}").replace("*", "rename")
        )
    new = old.with_name("new.ckpt")
    migrate_file(old, new, folder=folder)
    squashed = squashed_folder(folder)
    for name in NAMES[:4]:
        (squashed / f"{name}.py").unlink()

    revert_file(new, new, folder=squashed)

    assert find_unlike(read_checkpoint(old), read_checkpoint(new)) == []
    assert plan_file(new, read_set(squashed)).to_run == ("0004_turn_back_squashed", "0005_after")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("def handle(ckpt):\n    return ckpt\n", "has a `handle`"),
        (
            'from migrate_ckpt.operations import rename, requires_key\nrequires = requires_key("a")\n'
            'operations = [rename("a", "b")]\n',
            "`requires` something of the checkpoint as it is in between",
        ),
        (
            "from migrate_ckpt.operations import follow, rename\noptimizer = follow()\n"
            'operations = [rename("a", "b")]\n',
            "says in `optimizer`",
        ),
    ],
)
def test_what_cannot_be_squashed_is_refused_by_name(folder: Path, text: str, reason: str) -> None:
    (folder / "0002_again.py").write_text(text)

    with pytest.raises(FolderError, match=f"0002_again {reason}"):
        squash(folder, NAMES[0], NAMES[2])
    assert read_set(folder).files[-1].name == NAMES[-1]


def test_what_the_first_requires_is_kept(folder: Path, old: Path) -> None:
    path = folder / "0001_rename.py"
    text = path.read_text().replace("import ", "import requires_key, ")
    path.write_text(text.replace("operations =", 'requires = requires_key("a.w")\n\noperations ='))

    made = squash(folder, NAMES[0], NAMES[1])

    assert 'requires = requires_key("a.w")' in made.path.read_text()
    assert migrated(old, folder)[0].ran[0] == made.path.stem


def test_titles_are_written_so_that_they_read_the_same(folder: Path) -> None:
    titles = ['Rename """a""" to "b"', r"See C:\Users\N", "a\x00b\ud800", 'ends in """']
    for name, title in zip(NAMES, titles, strict=False):
        path = folder / f"{name}.py"
        code = path.read_text().partition("\n\n")[2]
        path.write_text(f"{title!r}\n\n{code}")

    made = squash(folder, NAMES[0], NAMES[3])

    docstring = ast.get_docstring(ast.parse(made.path.read_bytes()))
    read = [file.title for file in read_set(folder).files if file.name in NAMES[:4]]
    assert docstring is not None
    assert docstring.splitlines()[2:] == [f"* {title}" for title in read]


def test_one_that_may_be_passed_over_alone_is_refused(folder: Path) -> None:
    path = folder / "0001_rename.py"
    text = path.read_text().replace("import ", "import requires_key, ")
    required = 'requires = requires_key("a.w", otherwise="not_applicable")'
    path.write_text(text.replace("operations =", f"{required}\n\noperations ="))

    with pytest.raises(FolderError, match="0001_rename alone is passed over where what it"):
        squash(folder, NAMES[0], NAMES[1])


def test_what_it_writes_passes_lint(folder: Path) -> None:
    made = squash(folder, NAMES[1], NAMES[2])

    assert "drop(" in made.path.read_text()
    assert [each for each in lint_folder(folder) if each.path == made.path] == []


def test_range_must_be_one(folder: Path) -> None:
    with pytest.raises(UnknownMigration):
        squash(folder, "0001_rename", "0009_no")
    with pytest.raises(FolderError, match="no two migrations"):
        squash(folder, NAMES[1], NAMES[0])
    with pytest.raises(FolderError, match="would not come just after"):
        squash(folder, NAMES[0], NAMES[1], name="0006_late")


@pytest.mark.parametrize(
    ("replaces", "reason"),
    [
        ("[1]", "list of the names"),
        ('["0001_rename"]', "just after"),
        ("NAMES", "list of the names"),
    ],
)
def test_replaces_that_is_wrong_is_refused(folder: Path, replaces: str, reason: str) -> None:
    (folder / "0009_s.py").write_text(
        f"from migrate_ckpt.operations import drop\nreplaces = {replaces}\noperations = [drop('a')]\n"
    )

    with pytest.raises(InvalidMigrationFile, match=reason):
        read_set(folder)


def test_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder.parent)

    assert main(["squash", "0001_rename..0004_turn_back"]) == 0
    assert capsys.readouterr().out == (
        "migrations/0004_turn_back_squashed.py: 9 operations of 4 migrations are 3 now\n"
        "  It takes it that no checkpoint has a key that is y.{i}.w before: such a key would be left as it is, and "
        "those that are replaced take it along.\n"
    )
    with pytest.raises(SystemExit, match="2"):
        main(["squash", "0001_rename"])
    assert main(["squash", "0001_rename..0009_no"]) == 2

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from app import sets as sets_module
from app.sets import MigrationSets
from migrate_ckpt import FolderError, InvalidMigrationFile, UnknownSet

MIGRATION = "def handle(ckpt):\n    return ckpt\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "migrations"
    (folder / "vision").mkdir(parents=True)
    (folder / "0001_first.py").write_text(MIGRATION)
    (folder / "vision" / "0001_other.py").write_text(MIGRATION)
    return folder


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    folder = tmp_path / "copies"
    folder.mkdir()
    return folder


def names(sets: MigrationSets) -> list[str]:
    return [migration.name for migration in sets.current.find("default").files]


def look_twice(sets: MigrationSets) -> None:
    sets.reload()
    sets.reload()


def test_sets_are_those_of_a_copy(source: Path, copies: Path) -> None:
    sets = MigrationSets(source, copies)

    assert list(sets.current.sets) == ["default", "vision"]
    assert sets.current.folder.parent == copies
    assert (sets.current.folder / "vision" / "0001_other.py").read_text() == MIGRATION


def test_set_that_there_is_not_is_named_with_those_there_are(source: Path, copies: Path) -> None:
    with pytest.raises(UnknownSet) as caught:
        MigrationSets(source, copies).current.find("audio")

    assert caught.value.names == ("default", "vision")


def test_folder_that_cannot_be_read_at_the_start_is_refused(source: Path, copies: Path) -> None:
    (source / "0002_broken.py").write_text("def handle(ckpt:\n")
    with pytest.raises(InvalidMigrationFile):
        MigrationSets(source, copies)
    with pytest.raises(FolderError, match="cannot be read: No such file"):
        MigrationSets(source / "nowhere", copies)

    assert list(copies.iterdir()) == []


def test_folder_that_never_comes_to_rest_is_refused(
    source: Path, copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sets_module, "ATTEMPT_SECONDS", 0)
    monkeypatch.setattr(sets_module, "_stamp", lambda folder: object())

    with pytest.raises(FolderError, match="change while they are read"):
        MigrationSets(source, copies)

    assert list(copies.iterdir()) == []


def test_change_is_taken_up_when_it_has_come_to_rest(source: Path, copies: Path) -> None:
    sets = MigrationSets(source, copies)
    (source / "0002_second.py").write_text(MIGRATION)

    sets.reload()
    assert names(sets) == ["0001_first"]

    sets.reload()
    assert names(sets) == ["0001_first", "0002_second"]


def test_folder_without_a_change_is_not_copied_again(source: Path, copies: Path) -> None:
    sets = MigrationSets(source, copies)
    before = sets.current

    look_twice(sets)

    assert sets.current is before


@pytest.mark.parametrize("how", ["broken", "disordered", "gone", "unreadable"])
def test_change_that_is_not_sound_leaves_the_sets_and_is_a_problem_until_it_is_mended(
    source: Path, copies: Path, how: str
) -> None:
    sets = MigrationSets(source, copies)
    before = sets.current
    added = source / "0002_second.py"
    if how == "broken":
        added.write_text("def handle(ckpt:\n")
    elif how == "disordered":
        added = source / "10_x.py"
        added.write_text(MIGRATION)
        (source / "2_y.py").write_text(MIGRATION)
    elif how == "gone":
        source.rename(source.with_name("elsewhere"))
    else:
        added.symlink_to("nowhere")

    look_twice(sets)

    assert sets.current is before
    assert sets.problem is not None
    assert "still served" in sets.problem
    assert [path.name for path in copies.iterdir()] == [before.folder.name]
    if how == "gone":
        source.with_name("elsewhere").rename(source)
    else:
        added.unlink()
    look_twice(sets)
    assert sets.problem is None


def test_config_map_is_taken_up_when_its_link_is_set_anew(tmp_path: Path, copies: Path) -> None:
    # As the kubelet does it: each file is a link through ..data, and that is what changes.
    source = tmp_path / "mounted"
    for version, name in (("..1", "0001_first.py"), ("..2", "0002_second.py")):
        (source / version).mkdir(parents=True)
        (source / version / "0001_first.py").write_text(MIGRATION)
        (source / version / name).write_text(MIGRATION)
    (source / "..data").symlink_to("..1")
    (source / "0001_first.py").symlink_to("..data/0001_first.py")
    sets = MigrationSets(source, copies)
    assert names(sets) == ["0001_first"]
    assert not (sets.current.folder / "0001_first.py").is_symlink()

    (source / "..data_tmp").symlink_to("..2")
    os.rename(source / "..data_tmp", source / "..data")
    (source / "0002_second.py").symlink_to("..data/0002_second.py")
    look_twice(sets)

    assert names(sets) == ["0001_first", "0002_second"]


def test_what_is_held_stays_until_it_is_given_back(source: Path, copies: Path) -> None:
    sets = MigrationSets(source, copies)
    with sets.hold() as held:
        (source / "0001_first.py").write_text(f"import os\n{MIGRATION}")
        look_twice(sets)
        look_twice(sets)

        assert sets.current is not held
        assert (held.folder / "0001_first.py").read_text() == MIGRATION

    sets.reload()
    assert [path.name for path in copies.iterdir()] == [sets.current.folder.name]


def test_copies_come_and_go_while_they_are_held_by_others(source: Path, copies: Path) -> None:
    sets = MigrationSets(source, copies)
    found: list[bool] = []

    def hold() -> None:
        for _ in range(300):
            with sets.hold() as held:
                found.append((held.folder / "0001_first.py").exists())

    threads = [threading.Thread(target=hold) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(20):
        (source / "0001_first.py").write_text(f"x = {number}\n{MIGRATION}")
        look_twice(sets)
    for thread in threads:
        thread.join()

    assert all(found)


def test_caches_and_hidden_names_are_not_copied(source: Path, copies: Path) -> None:
    for name in (".git/config", "__pycache__/a.pyc", "vision/b.pyc"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("x")

    copied = MigrationSets(source, copies).current.folder

    found = [str(path.relative_to(copied)) for path in copied.rglob("*") if path.is_file()]
    assert sorted(found) == ["0001_first.py", "vision/0001_other.py"]

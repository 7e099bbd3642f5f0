from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from migrate_ckpt.errors import FolderError, InvalidMigrationFile, OrderMismatch, UnknownSet
from migrate_ckpt.folder import MigrationSet, read_folder, read_set, read_sets
from migrate_ckpt.new_file import new_migration

from .conftest import WriteFolder

HANDLE = "def handle(ckpt):\n    return ckpt\n"


def _refuse(path: Path, *args: object) -> None:
    raise PermissionError(errno.EACCES, "Permission denied", str(path))


def names(migration_set: MigrationSet) -> list[str]:
    return [file.name for file in migration_set.files]


class TestWhatIsAMigration:
    def test_names_are_the_stems_in_alphabetical_order(self, write_folder: WriteFolder) -> None:
        folder = write_folder({"b.py": HANDLE, "a-b.py": HANDLE, "a.py": HANDLE})

        assert names(read_folder(folder)) == ["a", "a-b", "b"]

    @pytest.mark.parametrize(
        "path",
        [
            "__init__.py",
            "_helpers.py",
            ".hidden.py",
            "README.md",
            "table.json",
            "a.pyc",
            "a.PY",
            "sub.py/data.txt",
            "__pycache__/a.cpython-311.pyc",
            "helpers/rename.py",
        ],
    )
    def test_other_things_in_the_folder_are_none(
        self, path: str, write_folder: WriteFolder
    ) -> None:
        folder = write_folder({"1_x.py": HANDLE, path: "x = 1"})

        assert names(read_folder(folder)) == ["1_x"]

    def test_empty_folder_is_an_empty_set(self, write_folder: WriteFolder) -> None:
        assert read_folder(write_folder({})).files == ()

    @pytest.mark.parametrize("name", ["nowhere", "1_x.py"])
    def test_path_that_is_no_folder_is_an_error(self, name: str, write_folder: WriteFolder) -> None:
        folder = write_folder({"1_x.py": HANDLE})

        with pytest.raises(FolderError, match="cannot be read") as caught:
            read_folder(folder / name)

        assert caught.value.path == folder / name

    def test_data_file_that_cannot_be_read_is_an_error(
        self, write_folder: WriteFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = write_folder({"table.json": "{}"})
        monkeypatch.setattr(Path, "open", _refuse)

        with pytest.raises(FolderError, match=r"Permission denied.*table\.json"):
            read_folder(folder)

    def test_nothing_is_run(self, write_folder: WriteFolder) -> None:
        bomb = f"raise AssertionError\n{HANDLE}"

        read_sets(write_folder({"__init__.py": bomb, "1_x.py": bomb, "s/1_x.py": bomb}))

    @pytest.mark.parametrize(
        "source",
        [
            pytest.param(HANDLE, id="a function"),
            pytest.param("handle = print", id="an assignment"),
            pytest.param("handle: object = print", id="an annotated assignment"),
            pytest.param("from x import y as handle", id="an import"),
            pytest.param("from x import *", id="an import of everything"),
            pytest.param(f"if x:\n    {HANDLE.replace('    ', '        ')}", id="a branch"),
            pytest.param("class handle: pass", id="a class"),
        ],
    )
    def test_handle_may_come_from(self, source: str, write_folder: WriteFolder) -> None:
        assert names(read_folder(write_folder({"1_x.py": source}))) == ["1_x"]

    def test_operations_may_come_all_at_once(self, write_folder: WriteFolder) -> None:
        source = "from migrate_ckpt.operations import *\noperations = [rename('a', 'b')]"

        (file,) = read_folder(write_folder({"1_x.py": source})).files

        assert file.is_declared

    @pytest.mark.parametrize(
        "source",
        [
            pytest.param("from migrate_ckpt.operations import *", id="all of the operations"),
            pytest.param("", id="an empty file"),
            pytest.param("handle", id="a mention"),
            pytest.param("def f():\n    handle = 1", id="a function's variable"),
            pytest.param("class A:\n    def handle(self): pass", id="a method"),
            pytest.param("from handle import x", id="a module of that name"),
            pytest.param("async def handle(ckpt): return ckpt", id="a coroutine"),
        ],
    )
    def test_file_without_handle_is_refused_with_what_to_do(
        self, source: str, write_folder: WriteFolder
    ) -> None:
        folder = write_folder({"1_x.py": source})

        with pytest.raises(InvalidMigrationFile, match=r"1_x\.py defines no `handle`") as caught:
            read_folder(folder)

        assert caught.value.name == "1_x"
        assert "underscore" in str(caught.value)

    @pytest.mark.parametrize(
        "content",
        [b"def handle(:", b"x = '\x00'", b"# coding: nonsense\n", b"x = '\xff'"],
        ids=["a syntax error", "a zero byte", "an unknown encoding", "a wrong encoding"],
    )
    def test_file_that_is_no_python_is_refused(
        self, content: bytes, write_folder: WriteFolder
    ) -> None:
        folder = write_folder({})
        (folder / "1_x.py").write_bytes(content)

        with pytest.raises(InvalidMigrationFile, match=r"1_x\.py cannot be read as Python"):
            read_folder(folder)

    def test_name_that_no_history_can_hold_is_refused(self, write_folder: WriteFolder) -> None:
        with pytest.raises(InvalidMigrationFile, match="unprintable"):
            read_folder(write_folder({"1\t.py": HANDLE}))


class TestTitle:
    @pytest.mark.parametrize(
        ("source", "title"),
        [
            (f'"""Rename it.\n\nWhy: because.\n"""\n{HANDLE}', "Rename it."),
            ('def handle(ckpt):\n    """\n    Rename it.\n    """\n    return ckpt', "Rename it."),
            (HANDLE, ""),
            (f'""""""\n{HANDLE}', ""),
        ],
        ids=["of the file", "of the function", "of neither", "an empty one"],
    )
    def test_title_is_the_first_line_of_the_docstring(
        self, source: str, title: str, write_folder: WriteFolder
    ) -> None:
        [file] = read_folder(write_folder({"1_x.py": source})).files

        assert file.title == title


class TestOrder:
    def test_numbers_that_sort_otherwise_than_their_digits_are_refused_with_two_ways_out(
        self, write_folder: WriteFolder
    ) -> None:
        stems = ["0_x", "1_x", "10_x", "11_x", "2_x"]
        folder = write_folder({f"{stem}.py": HANDLE for stem in stems})

        with pytest.raises(OrderMismatch, match="'10_x' comes before '1_x'") as caught:
            read_folder(folder)

        assert caught.value.names == ("10_x", "11_x", "1_x", "2_x")
        assert "0002_y, 0010_x" in str(caught.value)
        assert 'order = "natural"' in str(caught.value)

    def test_natural_order_is_taken_if_declared(self, write_folder: WriteFolder) -> None:
        files = {f"{i}_x.py": HANDLE for i in range(12)}

        folder = write_folder({**files, "__init__.py": 'order = "natural"'})

        assert names(read_folder(folder)) == [f"{i}_x" for i in range(12)]

    @pytest.mark.parametrize(
        "source",
        ["", 'order = "alphabetical"', 'def f():\n    order = "natural"', 'x = "natural"'],
        ids=["nothing", "another order", "a function's variable", "another name"],
    )
    def test_natural_order_is_not_taken_for_anything_less(
        self, source: str, write_folder: WriteFolder
    ) -> None:
        folder = write_folder({"9_x.py": HANDLE, "10_y.py": HANDLE, "__init__.py": source})

        with pytest.raises(OrderMismatch):
            read_folder(folder)

    @pytest.mark.parametrize(
        "stems",
        [
            pytest.param(["0009_x", "0010_y"], id="zero-padded"),
            pytest.param(["0_x", "1_y", "9_z"], id="one digit"),
            pytest.param(["20240101_x", "20251231_y"], id="dates"),
            pytest.param(["add", "rename"], id="words"),
            pytest.param(["1_x", "1_y"], id="one number twice"),
        ],
    )
    def test_folder_whose_two_orders_agree_is_accepted(
        self, stems: list[str], write_folder: WriteFolder
    ) -> None:
        folder = write_folder({f"{stem}.py": HANDLE for stem in reversed(stems)})

        assert names(read_folder(folder)) == stems


BASE = {"1_x.py": HANDLE, "_helpers.py": "x = 1", "table.json": "{}", "data/more.txt": "1"}


class TestSetDigest:
    @pytest.mark.parametrize(
        "change",
        [
            pytest.param({"1_x.py": "def handle(ckpt): return {**ckpt}"}, id="a migration"),
            pytest.param({"2_y.py": HANDLE}, id="a new migration"),
            pytest.param({"_helpers.py": "x = 2"}, id="a helper"),
            pytest.param({"table.json": "{} "}, id="a data file"),
            pytest.param({"data/more.txt": "2"}, id="a data file below"),
            pytest.param({"data/new.txt": ""}, id="a new data file"),
            pytest.param({"lib/rename.py": "x = 1"}, id="a package"),
            pytest.param({"__init__.py": "x = 1"}, id="an __init__.py"),
        ],
    )
    def test_digest_of_the_set_changes_with(
        self, change: dict[str, str], write_folder: WriteFolder
    ) -> None:
        before = read_folder(write_folder(BASE)).digest

        assert read_folder(write_folder(change)).digest != before

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param({"1_x.py": f"# why\n{HANDLE}"}, id="a comment"),
            pytest.param({"_helpers.py": "x = (1)"}, id="a helper's layout"),
            pytest.param({"__pycache__/_helpers.pyc": "x"}, id="a cached file"),
            pytest.param({".git/HEAD": "x"}, id="a hidden folder"),
            pytest.param({"other/1_x.py": HANDLE}, id="another set"),
        ],
    )
    def test_digest_of_the_set_does_not_change_with(
        self, change: dict[str, str], write_folder: WriteFolder
    ) -> None:
        before = read_folder(write_folder(BASE)).digest

        assert read_folder(write_folder(change)).digest == before

    def test_digest_does_not_depend_on_where_the_folder_is(self, write_folder: WriteFolder) -> None:
        one = read_folder(write_folder(BASE, name="one"))
        two = read_folder(write_folder(BASE, name="two"), set_name="other")

        assert one.digest == two.digest

    def test_digest_of_a_set_is_the_same_on_every_python(self, write_folder: WriteFolder) -> None:
        assert read_folder(write_folder(BASE)).digest == (
            "1:3d2fd3f1b25566e71d0c95706c71c4d2388d330d5131d0cea8c6b7329cd59760"
        )

    def test_renamed_migration_changes_the_sets_digest_and_not_its_own(
        self, write_folder: WriteFolder
    ) -> None:
        one = read_folder(write_folder({"1_x.py": HANDLE}, name="one"))
        two = read_folder(write_folder({"1_y.py": HANDLE}, name="two"))

        assert one.files[0].digest == two.files[0].digest
        assert one.digest != two.digest


class TestSets:
    def test_sub_folder_with_migrations_is_a_further_set(self, write_folder: WriteFolder) -> None:
        sets = read_sets(write_folder({"1_x.py": HANDLE, "resnet/1_y.py": HANDLE}))

        assert {name: names(found) for name, found in sets.items()} == {
            "default": ["1_x"],
            "resnet": ["1_y"],
        }
        assert sets["resnet"].name == "resnet"

    def test_default_set_is_there_even_if_it_is_empty(self, write_folder: WriteFolder) -> None:
        sets = read_sets(write_folder({"resnet/1_y.py": HANDLE}))

        assert list(sets) == ["default", "resnet"]

    @pytest.mark.parametrize(
        "path",
        ["data/x.json", "lib/rename.py", "_lib/1_x.py", ".git/1_x.py", "__pycache__/1_x.py"],
    )
    def test_sub_folder_without_migrations_is_none(
        self, path: str, write_folder: WriteFolder
    ) -> None:
        source = HANDLE if path.endswith("1_x.py") else "x = 1"

        assert list(read_sets(write_folder({path: source}))) == ["default"]

    def test_sub_folder_with_a_broken_file_is_not_passed_over(
        self, write_folder: WriteFolder
    ) -> None:
        with pytest.raises(InvalidMigrationFile):
            read_sets(write_folder({"resnet/1_x.py": "def handle(:"}))

    @pytest.mark.parametrize("name", ["default", "with space", "größe"])
    def test_name_that_no_set_can_have_is_refused(
        self, name: str, write_folder: WriteFolder
    ) -> None:
        with pytest.raises(FolderError, match="cannot be the name of a set"):
            read_sets(write_folder({f"{name}/1_x.py": HANDLE}))

    def test_set_that_does_not_exist_is_an_error_with_those_that_do(
        self, write_folder: WriteFolder
    ) -> None:
        folder = write_folder({"resnet/1_y.py": HANDLE})

        with pytest.raises(UnknownSet, match="no set 'vit'; there is: default, resnet") as caught:
            read_set(folder, "vit")

        assert caught.value.names == ("default", "resnet")

    def test_set_is_read_whatever_is_wrong_with_another_one(
        self, write_folder: WriteFolder
    ) -> None:
        folder = write_folder(
            {"1_x.py": HANDLE, "vit/1_y.py": HANDLE, "resnet/1_z.py": "def handle(:"}
        )

        assert names(read_set(folder)) == ["1_x"]
        assert names(read_set(folder, "vit")) == ["1_y"]
        with pytest.raises(InvalidMigrationFile):
            read_set(folder, "resnet")

    def test_mounted_folder_whose_files_are_links_is_read_once(
        self, write_folder: WriteFolder
    ) -> None:
        folder = write_folder({"..2026/1_x.py": HANDLE})
        os.symlink("..2026", folder / "..data")
        os.symlink("..data/1_x.py", folder / "1_x.py")

        assert {name: names(found) for name, found in read_sets(folder).items()} == {
            "default": ["1_x"]
        }


class TestNewMigration:
    def test_first_file_of_a_folder_that_is_not_there_yet(self, tmp_path: Path) -> None:
        path = new_migration(tmp_path / "new", "rename_encoder")

        assert path == tmp_path / "new" / "0001_rename_encoder.py"

    def test_new_file_is_a_migration_with_a_title(self, tmp_path: Path) -> None:
        new_migration(tmp_path, "rename_encoder")

        [file] = read_folder(tmp_path).files

        assert file.title == "Rename encoder."

    @pytest.mark.parametrize(
        ("stems", "new"),
        [
            (["0001_x", "0007_y"], "0008_new"),
            (["01_x"], "02_new"),
            (["1_x", "8_y"], "9_new"),
            (["0009_x"], "0010_new"),
            (["20240101_x"], "20240102_new"),
        ],
    )
    def test_new_number_has_the_width_of_the_others(
        self, stems: list[str], new: str, write_folder: WriteFolder
    ) -> None:
        folder = write_folder({f"{stem}.py": HANDLE for stem in stems})

        assert new_migration(folder, "new").stem == new

    def test_number_that_would_break_the_order_is_refused_before_anything_is_written(
        self, write_folder: WriteFolder
    ) -> None:
        folder = write_folder({"9_x.py": HANDLE})

        with pytest.raises(OrderMismatch):
            new_migration(folder, "new")

        assert names(read_folder(folder)) == ["9_x"]

    def test_number_may_grow_where_the_order_is_natural(self, write_folder: WriteFolder) -> None:
        folder = write_folder({"9_x.py": HANDLE, "__init__.py": 'order = "natural"'})

        assert new_migration(folder, "new").stem == "10_new"

    def test_file_that_would_not_come_last_is_refused(self, write_folder: WriteFolder) -> None:
        folder = write_folder({"rename.py": HANDLE})

        with pytest.raises(FolderError, match="would not come after 'rename'"):
            new_migration(folder, "new")

    @pytest.mark.parametrize("name", ["", "a b", "../a", "a.b", "a" * 201])
    def test_name_with_other_characters_is_refused(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(FolderError, match="letters, digits and underscores"):
            new_migration(tmp_path, name)

"""Migrations of other shapes, taken over without being run."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from migrate_ckpt import FolderError, adopt, ckpt_migration_key, migrate_from_folder, read_set
from migrate_ckpt.check import check_folder
from migrate_ckpt.cli import main

HANDLE = "def handle(ckpt):\n    ckpt['ran'] = [*ckpt.get('ran', []), {!r}]\n    return ckpt\n"


def write(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def names(folder: Path) -> list[str]:
    return [file.name for file in read_set(folder).files]


def is_sound(folder: Path) -> bool:
    return not check_folder(folder).problems


class TestOriginal:
    def test_files_and_histories_stay_as_they_are(self, tmp_path: Path) -> None:
        old = write(tmp_path / "old", {f"{n}.py": HANDLE.format(n) for n in ("01_a", "02_b")})

        adopted = adopt(old, tmp_path / "new")

        assert (adopted.kind, adopted.left) == ("the original library's", ())
        assert (tmp_path / "new" / "01_a.py").read_text() == (old / "01_a.py").read_text()
        ckpt, _ = migrate_from_folder({ckpt_migration_key: ["01_a"]}, tmp_path / "new")
        assert ckpt["ran"] == ["02_b"]

    def test_numbers_without_zeros_are_ordered_by_number(self, tmp_path: Path) -> None:
        old = write(tmp_path / "old", {f"{n}.py": HANDLE.format(n) for n in ("9_a", "10_b")})

        adopted = adopt(old, tmp_path / "new")

        assert names(tmp_path / "new") == ["9_a", "10_b"]
        assert "in alphabetical order" in adopted.notes[0]

    def test_what_is_no_migration_is_left_and_named(self, tmp_path: Path) -> None:
        files = {"01_a.py": HANDLE.format(1), "helpers.py": "x = 1\n", "_own.py": "y = 1\n"}
        files |= {"02_b.py": "def handle(ckpt, model):\n    return ckpt\n", "03_c.py": "def ("}
        old = write(tmp_path / "old", files)

        adopted = adopt(old, tmp_path / "new")

        assert [name for name, _ in adopted.left] == ["02_b.py", "03_c.py", "helpers.py", "_own.py"]
        assert names(tmp_path / "new") == ["01_a"]

    def test_packages_that_must_be_installed_are_named(self, tmp_path: Path) -> None:
        text = "import os\nimport mypackage.x\n" + HANDLE.format(1)
        old = write(tmp_path / "old", {"01_a.py": text})

        assert "01_a.py imports mypackage" in adopt(old, tmp_path / "new").notes[0]


INDEX = '''
"""Upgrades."""

def _index():
    return {"1.0": [_migrate_first, _second], "2.0.0": [_third]}


def _migrate_first(ckpt):
    """Do the first thing.

    More of it.
    """
    return {**ckpt, "ran": [*ckpt.get("ran", []), 1]}


def _second(ckpt):
    return {**ckpt, "ran": [*ckpt.get("ran", []), 2]}


def _third(ckpt):
    return {**ckpt, "ran": [*ckpt.get("ran", []), 3]}
'''


class TestIndex:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "upgrades.py").write_text(INDEX)
        adopt(tmp_path / "upgrades.py", tmp_path / "new", version_key="version")
        return tmp_path / "new"

    def test_each_function_is_a_migration(self, folder: Path) -> None:
        assert names(folder) == ["0001_first", "0002_second", "0003_third", "0004_set_the_version"]
        assert read_set(folder).files[0].title == "Do the first thing."
        assert is_sound(folder)

    @pytest.mark.parametrize(
        ("version", "ran"),
        [
            ("0.9", [1, 2, 3]),
            ("1.0.0rc1", [1, 2, 3]),
            ("1.0", [3]),
            ("1.0.0", [3]),
            ("1.10", [3]),
            ("2.0.0.dev1", [3]),
            ("2", []),
            ("2.0.0.post1", []),
            ("2.0.0+cpu", []),
            ("10.0", []),
        ],
    )
    def test_versions_say_what_is_due(self, folder: Path, version: str, ran: list[int]) -> None:
        ckpt, _ = migrate_from_folder({"version": version}, folder)

        assert ckpt.get("ran", []) == ran
        assert ckpt["version"] == ("2.0.0" if ran else version)

    def test_function_may_have_a_name_of_ours(self, tmp_path: Path) -> None:
        functions = "".join(
            f"def {name}(ckpt):\n    return {{**ckpt, {name!r}: 1}}\n\n\n"
            for name in ("handle", "is_before")
        )
        (tmp_path / "a.py").write_text(functions + "X = {'1.0': [handle, is_before]}\n")
        adopt(tmp_path / "a.py", tmp_path / "new", version_key="version")

        ckpt, _ = migrate_from_folder({"version": "0.1"}, tmp_path / "new")

        assert (ckpt["handle"], ckpt["is_before"]) == (1, 1)

    def test_newest_version_is_set_in_whatever_order_they_stand(self, tmp_path: Path) -> None:
        text = "def f(ckpt):\n    return ckpt\n\n\nX = {'1.10': [f], '1.9': [f], '1.10rc1': [f]}\n"
        (tmp_path / "a.py").write_text(text)
        adopt(tmp_path / "a.py", tmp_path / "new", version_key="version")

        ckpt, _ = migrate_from_folder({"version": "0.1"}, tmp_path / "new")

        assert ckpt["version"] == "1.10"

    @pytest.mark.parametrize(
        "text",
        [
            '"""\nRAN.append(1)\n"""',
            'ends in a quote"',
            "ends in a backslash\\",
            "C:\\new {title}",
            "a\x00b\ud800",
        ],
        ids=["code", "quote", "backslash", "braces", "control"],
    )
    def test_texts_of_the_file_stay_texts(self, tmp_path: Path, text: str) -> None:
        version = f"1.0{text}"
        source = f"def f(ckpt):\n    {text!r}\n    return ckpt\n\n\nX = {{{version!r}: [f]}}\n"
        (tmp_path / "a.py").write_text(source)
        adopt(tmp_path / "a.py", tmp_path / "new", version_key="version")

        assert is_sound(tmp_path / "new")
        ckpt, _ = migrate_from_folder({"version": "0.1"}, tmp_path / "new")
        assert ckpt["version"] == version
        if text.isprintable():
            assert read_set(tmp_path / "new").files[0].title == text

    def test_file_without_an_index_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.py").write_text('x = {"1.0": [f]}\ny = {"a": 1}\n')

        with pytest.raises(FolderError, match="has no index"):
            adopt(tmp_path / "a.py", tmp_path / "new")

    @pytest.mark.filterwarnings("ignore:This checkpoint contains apex")
    def test_lightnings_own_does_what_lightning_does(self, tmp_path: Path) -> None:
        spec = importlib.util.find_spec("lightning.pytorch.utilities.migration.migration")
        assert spec is not None
        assert spec.origin is not None
        from lightning.pytorch.utilities.migration import migrate_checkpoint

        adopted = adopt(spec.origin, tmp_path / "new")

        assert "imports lightning" in adopted.notes[1]
        old = {
            "pytorch-lightning_version": "1.5.0",
            "global_step": 7,
            "epoch": 2,
            "callbacks": {"ModelCheckpoint{'monitor': None, 'save_on_train_epoch_end': True}": {}},
            "amp_scaling_state": {},
            "state_dict": {},
        }
        by_lightning, _ = migrate_checkpoint(copy.deepcopy(old))
        by_us, _ = migrate_from_folder(copy.deepcopy(old), tmp_path / "new")
        left_out = (
            "pytorch-lightning_version",
            "legacy_pytorch-lightning_version",
            ckpt_migration_key,
        )
        assert without(by_us, left_out) == without(by_lightning, left_out)
        assert by_us["pytorch-lightning_version"] == "2.0.0"


def without(ckpt: Any, keys: tuple[str, ...]) -> dict[str, Any]:
    left = {key: value for key, value in ckpt.items() if key not in keys}
    return {key: value for key, value in left.items() if not key.startswith("_migrate")}


SCRIPT = """# A licence.

import logging

from anemoi.models.migrations import CkptType
from anemoi.models.migrations import MigrationContext
from anemoi.models.migrations import MigrationMetadata

LOGGER = logging.getLogger(__name__)

# DO NOT CHANGE -->
metadata = MigrationMetadata(
    versions={"migration": "1.0.0", "anemoi-models": "0.12.0"},
)
# <-- END DO NOT CHANGE
"""
SETUP = '''

def migrate_setup(context: MigrationContext) -> None:
    """Set up."""
    context.move_attribute("argparse.Namespace", "types.SimpleNamespace")
    context.move_module("old.package", "new.package")
    context.delete_attribute("old.Gone")
'''
MIGRATE = '''

def migrate(ckpt: CkptType) -> CkptType:
    """Migrate."""
    ckpt["ran"] = [*ckpt.get("ran", []), NAME]
    return ckpt


def rollback(ckpt: CkptType) -> CkptType:
    ckpt["ran"] = ckpt["ran"][:-1]
    return ckpt
'''

PLAIN = """
def migrate(ckpt):
    for key in ["in"][0:1]:
        if key in ckpt:
            migrate(ckpt[key])
    ckpt["ran"] = [*ckpt["ran"], [1][0]]
    return ckpt


def rollback(ckpt):
    ckpt["ran"] = ckpt["ran"][:-1]
    return ckpt
"""


class TestScripts:
    @pytest.fixture
    def old(self, tmp_path: Path) -> Path:
        files = {
            "100_initial.py": SCRIPT,
            "200_plain.py": SCRIPT + MIGRATE.replace("NAME", "200"),
            "300_moves.py": SCRIPT + SETUP + MIGRATE.replace("NAME", "300"),
            "400_only_moves.py": SCRIPT + SETUP,
            "__init__.py": "",
        }
        return write(tmp_path / "old", files)

    def test_each_is_a_migration(self, old: Path, tmp_path: Path) -> None:
        adopted = adopt(old, tmp_path / "new")

        assert adopted.left == ()
        assert names(tmp_path / "new")[0] == "0000_take_over_the_history"
        assert names(tmp_path / "new")[1:] == [
            "100_initial",
            "200_plain",
            "300_moves",
            "400_only_moves",
        ]
        assert is_sound(tmp_path / "new")
        ckpt, _ = migrate_from_folder({}, tmp_path / "new")
        assert ckpt["ran"] == [200, 300]
        text = (tmp_path / "new" / "300_moves.py").read_text()
        assert 'rename_class("argparse.Namespace", "types.SimpleNamespace", missing="skip")' in text
        assert 'rename_class("old.package.*", "new.package.*", missing="skip")' in text
        assert "anemoi" not in text.replace("anemoi-models", "")

    def test_history_of_anemoi_counts(self, old: Path, tmp_path: Path) -> None:
        adopt(old, tmp_path / "new")
        had = [{"name": "100_initial", "metadata": object()}, {"name": "200_plain"}, {"name": "x"}]

        ckpt, _ = migrate_from_folder({"migrations": had}, tmp_path / "new")

        assert ckpt["ran"] == [300]

    def test_classes_are_renamed_and_back(self, old: Path, tmp_path: Path) -> None:
        import argparse

        import torch

        from migrate_ckpt import inspect_file, migrate_file, revert_file

        adopt(old, tmp_path / "new")
        torch.save({"args": argparse.Namespace(a=1)}, tmp_path / "old.ckpt")
        migrate_file(tmp_path / "old.ckpt", tmp_path / "new.ckpt", folder=tmp_path / "new")
        assert inspect_file(tmp_path / "new.ckpt").globals == ("types.SimpleNamespace",)

        revert_file(
            tmp_path / "new.ckpt",
            tmp_path / "back.ckpt",
            folder=tmp_path / "new",
            to="200_plain",
        )
        assert inspect_file(tmp_path / "back.ckpt").globals == ("argparse.Namespace",)

    @pytest.mark.parametrize(
        "text",
        [
            "from __future__ import annotations\n\n" + PLAIN,
            "from __future__ import (\n    annotations,  # why\n)\n" + PLAIN,
            "KEEP = 1\n\f\nLEFT = 2\nmetadata = MigrationMetadata()\n" + PLAIN,
            '"""a\u2028b\x85\x1c"""\nKEEP = 1\nmetadata = None\n' + PLAIN,
            "KEEP = '\u2028'; LEFT = 2\nmetadata = None;\n" + PLAIN,
            "\f" + PLAIN,
            PLAIN.replace("migrate(", "migrate  ("),
            PLAIN.replace("def migrate", "def \\\n  migrate"),
            PLAIN.replace("migrate(", "migrate(  # why\n    "),
            PLAIN.replace("[1][0]", "('\xe9\U0001f600', [1][[migrate].index(migrate)])[1]"),
            "metadata = [migrate, migrate]\n" + PLAIN + "def rollback_setup(x):\n    migrate(x)\n",
            PLAIN + "AGAIN = 'm'\nCHECK = [rollback, migrate]\n",
            PLAIN.replace("migrate(ckpt[key])", "handle = ckpt[key]; handle['ran'] = [1]"),
            "class A:\n    def migrate(self):\n        return self.migrate(migrate=1)\n" + PLAIN,
        ],
    )
    @pytest.mark.parametrize("setup", ["", SETUP], ids=["plain", "moves"])
    @pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"], ids=repr)
    def test_what_python_reads_is_taken_over_whole(
        self, tmp_path: Path, text: str, setup: str, line_end: str
    ) -> None:
        old = tmp_path / "old"
        old.mkdir()
        (old / "1_a.py").write_bytes((text + setup).replace("\n", line_end).encode())

        assert adopt(old, tmp_path / "new").left == ()

        written = (tmp_path / "new" / "1_a.py").read_text()
        assert "metadata" not in written
        made, _ = migrate_from_folder({"ran": [], "in": {"ran": []}}, tmp_path / "new")
        assert (made["ran"], made["in"]["ran"]) == ([1], [1])

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            (PLAIN + "migrate = None\n", "more than one plain function"),
            (PLAIN.replace("return", "(lambda migrate: 1)(1)\n    return"), "more than one plain"),
            ("async def migrate(ckpt):\n    return ckpt\n", "more than one plain function"),
            (PLAIN + "revert = None\n", "has a `revert` of its own"),
            (PLAIN.replace("return", "handle = migrate\n    return"), "has a `handle` of its own"),
            ("X = 1; metadata = None\n" + PLAIN, "more than one statement on line 1"),
            ("metadata = None; X = 1\n" + PLAIN, "more than one statement on line 1"),
        ],
    )
    def test_what_cannot_be_edited_safely_is_left_and_named(
        self, tmp_path: Path, text: str, reason: str
    ) -> None:
        old = write(tmp_path / "old", {"1_a.py": text, "2_b.py": PLAIN})

        adopted = adopt(old, tmp_path / "new")

        [(name, why)] = adopted.left
        assert name == "1_a.py"
        assert reason in why
        assert names(tmp_path / "new") == ["0000_take_over_the_history", "2_b"]

    def test_name_of_the_file_stays_a_text(self, tmp_path: Path) -> None:
        old = write(tmp_path / "old", {'1_a"""\\x.py': PLAIN})

        adopt(old, tmp_path / "new")

        assert read_set(tmp_path / "new").files[1].title == 'A"""\\x.'

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            (SCRIPT + "\n\ndef migrate(ckpt, model=None):\n    return ckpt\n", "takes more than"),
            (SCRIPT + "from anemoi.models.layers import X\n" + MIGRATE, "needs anemoi"),
            (SCRIPT + SETUP + '    print("x")\n', "does more than to move"),
            ("def (", "cannot be read as Python"),
        ],
    )
    def test_what_has_another_shape_is_left_and_named(
        self, old: Path, tmp_path: Path, text: str, reason: str
    ) -> None:
        (old / "250_other.py").write_text(text)

        adopted = adopt(old, tmp_path / "new")

        [(name, why)] = adopted.left
        assert name == "250_other.py"
        assert not why.startswith(name)
        assert reason in why
        assert "250_other" not in names(tmp_path / "new")


LATIN = "# -*- coding: latin-1 -*-\n# \xe9\nNAME = '\xe9'\n"


class TestEncodings:
    """A file may say which encoding it is in; what is written is in UTF-8."""

    @pytest.mark.parametrize(
        "body",
        [
            "\n\ndef handle(ckpt):\n    ckpt['name'] = NAME\n    return ckpt\n",
            "\n\ndef migrate(ckpt):\n    ckpt['name'] = NAME\n    return ckpt\n",
            "\n\ndef f(ckpt):\n    return {**ckpt, 'name': NAME}\n\n\nX = {'1.0': [f]}\n",
        ],
        ids=["original", "script", "index"],
    )
    def test_one_that_is_named_is_kept_to(self, tmp_path: Path, body: str) -> None:
        old = tmp_path / "old"
        old.mkdir()
        (old / "01_a.py").write_bytes((LATIN + body).encode("latin-1"))

        adopt(old / "01_a.py" if "X =" in body else old, tmp_path / "new", version_key="version")

        ckpt, _ = migrate_from_folder({"version": "0.1"}, tmp_path / "new")
        assert ckpt["name"] == "\xe9"

    @pytest.mark.parametrize(
        "text",
        [
            b"# coding: utf-8\n# \xe9\n",
            b"# coding: nothing-known\n",
            b"# coding: hex\n",
            b"# coding: raw_unicode_escape\nx = '\\ud800'\n",
        ],
        ids=["not-utf-8", "unknown", "no-text", "surrogate"],
    )
    @pytest.mark.parametrize("name", ["handle", "migrate"])
    def test_what_cannot_be_decoded_is_left_and_named(
        self, tmp_path: Path, text: bytes, name: str
    ) -> None:
        good = f"def {name}(ckpt):\n    return ckpt\n"
        old = write(tmp_path / "old", {"01_a.py": good})
        (old / "02_b.py").write_bytes(text + good.encode())

        adopted = adopt(old, tmp_path / "new")

        [(left, reason)] = adopted.left
        assert left == "02_b.py"
        assert "cannot be read as" in reason


def test_folder_of_nothing_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match=r"No file of .* defines"):
        adopt(write(tmp_path / "old", {"a.py": "x = 1\n"}), tmp_path / "new")


def test_folder_that_has_migrations_is_not_added_to(tmp_path: Path) -> None:
    old = write(tmp_path / "old", {"01_a.py": HANDLE.format(1)})

    with pytest.raises(FolderError, match="has migrations already"):
        adopt(old, old)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = write(tmp_path / "old", {"01_a.py": HANDLE.format(1), "x.py": "y = 1\n"})

    assert main(["adopt", str(old), "--folder", str(tmp_path / "new")]) == 1

    out = capsys.readouterr().out
    assert "the original library's, 1 files written" in out
    assert "left: x.py" in out
    assert main(["adopt", str(old), "--folder", str(tmp_path / "other"), "--json"]) == 1
    assert main(["adopt", str(old), "--folder", str(tmp_path / "new")]) == 2

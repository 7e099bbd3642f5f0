from __future__ import annotations

import sys
from pathlib import Path

import pytest

from migrate_ckpt.errors import InvalidMigrationFile
from migrate_ckpt.loader import get_folder_migrations

from .conftest import WriteFolder

HANDLE = "def handle(ckpt):\n    return ckpt\n"
USE_HELPER = "def handle(ckpt):\n    return {**ckpt, 'value': value}\n"


def value_of(folder: Path) -> object:
    [migration] = get_folder_migrations(folder)
    return migration.callback({})["value"]


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("from ._helpers import value", id="from the module, relative"),
        pytest.param("from . import _helpers\nvalue = _helpers.value", id="from the folder"),
        pytest.param("import _helpers\nvalue = _helpers.value", id="plain"),
        pytest.param("from _helpers import value", id="from the module, plain"),
        pytest.param("import _helpers as h\nvalue = h.value", id="plain, under another name"),
        pytest.param("from .lib.part import value", id="of a package, relative"),
        pytest.param("from lib.part import value", id="of a package, plain"),
        pytest.param("from lib import part\nvalue = part.value", id="a package's module"),
        pytest.param("import lib.part\nvalue = lib.part.value", id="a package's module, dotted"),
        pytest.param("import lib.part as p\nvalue = p.value", id="dotted, under another name"),
        pytest.param("from lib import indirect as value", id="through the package itself"),
        pytest.param("from .bare.part import value", id="of a package without __init__.py"),
    ],
)
def test_helper_beside_the_migration_is_imported(source: str, write_folder: WriteFolder) -> None:
    folder = write_folder(
        {
            "1_x.py": f"{source}\n{USE_HELPER}",
            "_helpers.py": "value = 1",
            "lib/__init__.py": "from _helpers import value as indirect",
            "lib/part.py": "from _helpers import value",
            "bare/part.py": "value = 1",
        }
    )

    assert value_of(folder) == 1


def test_helper_is_imported_while_the_migration_runs(write_folder: WriteFolder) -> None:
    lazily = "def handle(ckpt):\n    import _helpers\n    return {'value': _helpers.value}\n"
    folder = write_folder({"1_x.py": lazily, "_helpers.py": "value = 1"})

    assert value_of(folder) == 1


def test_two_folders_with_the_same_file_names_do_not_meet(write_folder: WriteFolder) -> None:
    lazily = "def handle(ckpt):\n    from _helpers import value\n    return {'value': value}\n"
    folders = [
        write_folder({"1_x.py": lazily, "_helpers.py": f"value = {name!r}"}, name=name)
        for name in ("one", "two")
    ]

    loaded = [get_folder_migrations(folder)[0] for folder in folders]

    assert [m.callback({})["value"] for m in loaded] == ["one", "two"]
    assert "_helpers" not in sys.modules
    assert "1_x" not in sys.modules


def test_search_path_is_left_alone(write_folder: WriteFolder) -> None:
    before = list(sys.path)

    get_folder_migrations(write_folder({"1_x.py": f"import _helpers\n{HANDLE}", "_helpers.py": ""}))

    assert sys.path == before


def test_standard_library_is_not_hidden_by_the_folder(write_folder: WriteFolder) -> None:
    folder = write_folder(
        {
            "1_x.py": f"import json\nvalue = json.dumps(1)\n{USE_HELPER}",
            "json/rows.py": "x = 1",
        }
    )

    assert value_of(folder) == "1"


@pytest.mark.parametrize("path", ["pytest/1_x.py", "pytest/table.txt"], ids=["set", "data"])
def test_installed_package_is_not_hidden_by_a_folder_of_its_name_that_is_no_package(
    path: str, write_folder: WriteFolder
) -> None:
    source = f"import pytest\nvalue = hasattr(pytest, 'fail')\n{USE_HELPER}"

    assert value_of(write_folder({"1_x.py": source, path: HANDLE})) is True


def test_edited_folder_is_loaded_anew(write_folder: WriteFolder) -> None:
    write_folder(
        {"1_x.py": f"from _helpers import value\n{USE_HELPER}", "_helpers.py": "value = 1"}
    )
    folder = write_folder({})
    before = value_of(folder)

    write_folder({"_helpers.py": "value = 2"})

    assert (before, value_of(folder)) == (1, 2)


def test_dataclass_under_postponed_annotations_is_defined(write_folder: WriteFolder) -> None:
    source = """
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Names:
    old: str

def handle(ckpt: dict) -> dict:
    return {"value": Names("x").old}
"""

    assert value_of(write_folder({"1_x.py": source})) == "x"


def test_data_file_beside_the_migration_is_read(write_folder: WriteFolder) -> None:
    source = f"from pathlib import Path\nvalue = Path(__file__).with_name('t.txt').read_text()\n{USE_HELPER}"

    assert value_of(write_folder({"1_x.py": source, "t.txt": "text"})) == "text"


def test_init_file_is_run_when_the_folder_is_loaded(write_folder: WriteFolder) -> None:
    folder = write_folder(
        {"__init__.py": "value = 1", "1_x.py": f"from . import value\n{USE_HELPER}"}
    )

    assert value_of(folder) == 1


def test_name_with_a_dot_is_a_module_like_any_other(write_folder: WriteFolder) -> None:
    [migration] = get_folder_migrations(write_folder({"1.2_x.py": HANDLE}))

    assert migration.name == "1.2_x"


def test_migration_is_not_mistaken_for_a_folder_of_its_name(write_folder: WriteFolder) -> None:
    folder = write_folder(
        {"1_x.py": f"value = 1\n{USE_HELPER}", "1_x/__init__.py": "raise OSError"}
    )

    assert value_of(folder) == 1


def test_loaded_migration_has_the_title_and_digest_of_its_file(write_folder: WriteFolder) -> None:
    [migration] = get_folder_migrations(write_folder({"1_x.py": f'"""Title."""\n{HANDLE}'}))

    assert migration.title == "Title."
    assert migration.digest is not None


def test_nothing_is_written_into_the_folder(
    write_folder: WriteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    folder = write_folder(
        {
            "1_x.py": f"from lib.part import value\nimport _helpers\n{USE_HELPER}",
            "_helpers.py": "",
            "lib/__init__.py": "",
            "lib/part.py": "value = 1",
        }
    )
    before = sorted(folder.rglob("*"))

    value_of(folder)

    assert sorted(folder.rglob("*")) == before


def test_stale_bytecode_is_not_run(write_folder: WriteFolder) -> None:
    folder = write_folder({"1_x.py": f"value = 1\n{USE_HELPER}", "_old.pyc": "no bytecode"})
    cached = folder / "__pycache__" / f"1_x.{sys.implementation.cache_tag}.pyc"
    cached.parent.mkdir()
    cached.write_bytes(b"no bytecode")

    assert value_of(folder) == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise ValueError('old')", "ValueError: old"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_file_that_cannot_be_imported_is_named(
    source: str, message: str, write_folder: WriteFolder
) -> None:
    folder = write_folder({"1_x.py": HANDLE, "2_y.py": f"{source}\n{HANDLE}"})
    modules = set(sys.modules)

    with pytest.raises(InvalidMigrationFile, match=rf"2_y\.py cannot be imported: {message}"):
        get_folder_migrations(folder)

    assert set(sys.modules) == modules


def test_handle_that_cannot_be_called_is_refused(write_folder: WriteFolder) -> None:
    with pytest.raises(InvalidMigrationFile, match=r"`handle` of 1_x\.py cannot be called"):
        get_folder_migrations(write_folder({"1_x.py": "handle = None"}))


def test_migration_sees_the_builtins_of_any_module(write_folder: WriteFolder) -> None:
    source = "value = [int('1'), __name__.endswith('1_x'), len(__builtins__) > 100]"

    assert value_of(write_folder({"1_x.py": f"{source}\n{USE_HELPER}"})) == [1, True, True]

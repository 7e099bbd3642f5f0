from __future__ import annotations

import pathlib

import pytest
import torch

from migrate_ckpt import get_folder_migrations, migrate_ckpt, new_migration, operations
from migrate_ckpt.errors import FolderError, NotInvertible
from migrate_ckpt.history import read_history
from migrate_ckpt.linting.code import LOSSY_OPERATIONS
from migrate_ckpt.linting.findings import CODES, is_meant_so
from migrate_ckpt.linting.folder_lint import lint_folder
from migrate_ckpt.stamping import stamp


def handle(*lines: str, docstring: str = "Do it.") -> str:
    body = "".join(f"    {line}\n" for line in lines)
    return f'"""{docstring}"""\nimport re\nimport torch\n\n\ndef handle(ckpt):\n{body}'


def body(*lines: str) -> str:
    return handle(*lines, "return ckpt")


LOSSY = 'operations = [drop("w")]\n'

# Code, files, and the lines it is found at.
FOUND = {
    "no Python": ("MC001", {"0001_a.py": "def handle(:\n"}, [1]),
    "nothing that runs": ("MC002", {"0001_a.py": '"""A."""\n'}, [1]),
    "one number twice": ("MC003", {"0001_a.py": body(), "0001_b.py": body()}, [1]),
    "one number twice, of two widths": ("MC003", {"01_a.py": body(), "1_b.py": body()}, [1]),
    "ten before two": ("MC004", {"10_a.py": body(), "2_b.py": body()}, [1, 1]),
    "no return": ("MC005", {"0001_a.py": handle("ckpt['x'] = 1")}, [6]),
    "a return of nothing": ("MC005", {"0001_a.py": body("if not ckpt:", "    return")}, [8]),
    "a branch without return": (
        "MC005",
        {"0001_a.py": handle("if ckpt:", "    return ckpt")},
        [6],
    ),
    "a loop around the return": (
        "MC005",
        {"0001_a.py": handle("for key in ckpt:", "    return ckpt")},
        [6],
    ),
    "no docstring": ("MC006", {"0001_a.py": "def handle(ckpt):\n    return ckpt\n"}, [1]),
    "a deletion": ("MC007", {"0001_a.py": body("del ckpt['x']")}, [7]),
    "a pop": ("MC007", {"0001_a.py": body("ckpt.pop('x', None)")}, [7]),
    "half precision": ("MC007", {"0001_a.py": body("ckpt['x'] = ckpt['x'].half()")}, [7]),
    "another dtype": ("MC007", {"0001_a.py": body("ckpt['x'] = ckpt['x'].to(torch.float16)")}, [7]),
    "an optimizer given up": (
        "MC007",
        {
            "0001_a.py": '"""A."""\noptimizer = follow(states="drop")\noperations = [rename("a", "b")]\n'
        },
        [2],
    ),
    "a dropping operation": ("MC007", {"0001_a.py": f'"""A."""\n{LOSSY}'}, [2]),
    "replace": ("MC008", {"0001_a.py": body("x = 'a.b'.replace('module.', '')")}, [7]),
    "re.sub": ("MC008", {"0001_a.py": body("x = re.sub(r'module\\.', '', 'a')")}, [7]),
    "a compiled pattern": (
        "MC008",
        {"0001_a.py": body("p = re.compile('module')", "x = p.sub('', 'a')")},
        [8],
    ),
    "a clock": ("MC009", {"0001_a.py": body("import time")}, [7]),
    "a network": ("MC009", {"0001_a.py": body("from urllib.request import urlopen")}, [7]),
    "random numbers": ("MC009", {"0001_a.py": body("ckpt['x'] = torch.randn(3)")}, [7]),
    "random numbers in place": (
        "MC009",
        {"0001_a.py": body("ckpt['x'] = torch.empty(3).normal_()")},
        [7],
    ),
    "the environment": ("MC009", {"0001_a.py": body("import os", "os.environ['X']")}, [8]),
    "today": ("MC009", {"0001_a.py": body("import datetime", "datetime.datetime.now()")}, [8]),
    "a set below": ("MC006", {"vision/0001_a.py": "def handle(ckpt):\n    return ckpt\n"}, [1]),
}

CLEAN = {
    "a date in two names": {"2024_01_01_a.py": body(), "2024_01_02_b.py": body()},
    "numbers of one width": {"0002_a.py": body(), "0010_b.py": body()},
    "an order that is declared": {
        "__init__.py": 'order = "natural"\n',
        "10_a.py": body(),
        "2_b.py": body(),
    },
    "a return in each branch": {
        "0001_a.py": handle("if ckpt:", "    return ckpt", "else:", "    raise ValueError")
    },
    "a return of an inner function": {
        "0001_a.py": body("def inner():", "    return", "ckpt.update(x=inner)")
    },
    "a return in a with": {"0001_a.py": handle("with torch.no_grad():", "    return ckpt")},
    "a return in a try": {
        "0001_a.py": handle("try:", "    return ckpt", "except KeyError:", "    raise")
    },
    "a return in each case": {
        "0001_a.py": handle(
            "match ckpt:",
            "    case {}:",
            "        return ckpt",
            "    case _:",
            "        raise KeyError",
        )
    },
    "a deletion that is told": {
        "0001_a.py": handle(
            "del ckpt['x']", "return ckpt", docstring="Do it.\n\nLossy: x goes, nobody reads it."
        )
    },
    "a deletion after a move": {"0001_a.py": body("ckpt['y'] = ckpt['x']", "del ckpt['x']")},
    "a pop after a move": {"0001_a.py": body("ckpt['y'] = ckpt['x']", "ckpt.pop('x')")},
    "a pop that is kept": {"0001_a.py": body("ckpt['y'] = ckpt.pop('x')")},
    "a wider dtype": {"0001_a.py": body("ckpt['x'] = ckpt['x'].to(torch.float64)")},
    "a prefix removed": {"0001_a.py": body("x = 'a'.removeprefix('module.')")},
    "an anchored pattern": {"0001_a.py": body("x = re.sub(r'^module\\.', '', 'a')")},
    "punctuation replaced": {"0001_a.py": body("x = 'a/b'.replace('/', '.')")},
    "replace of something else": {
        "0001_a.py": body("from dataclasses import replace", "x = replace(ckpt['c'], lr=1)")
    },
    "operations": {
        "0001_a.py": '"""A."""\nfrom migrate_ckpt.operations import rename\noperations = [rename("a", "b")]\n'
    },
    "a helper": {"0001_a.py": body(), "_helper.py": "import time\n"},
}


@pytest.mark.parametrize(("code", "files", "lines"), FOUND.values(), ids=FOUND)
def test_each_mistake_is_found_where_it_is(write_folder, code, files, lines):
    findings = lint_folder(write_folder(files))

    assert [finding.line for finding in findings if finding.code == code] == lines


@pytest.mark.parametrize("files", CLEAN.values(), ids=CLEAN)
def test_what_is_no_mistake_is_not_found(write_folder, files):
    assert lint_folder(write_folder(files)) == []


def test_every_code_but_the_one_that_needs_checkpoints_has_an_example():
    assert {code for code, _, _ in FOUND.values()} == set(CODES) - {"MC010"}


def test_a_migration_edited_since_it_was_applied_somewhere_is_found(write_folder):
    folder = write_folder({"0001_a.py": body(), "0002_b.py": body()})
    histories = {name: read_history(stamp({}, folder)) for name in ("x.ckpt", "y.ckpt")}
    write_folder({"0002_b.py": body("ckpt['new'] = 1")})

    [finding] = lint_folder(folder, histories=histories)

    assert (finding.path.name, finding.line, finding.code) == ("0002_b.py", 1, "MC010")
    assert "x.ckpt and 1 more" in finding.message


def test_a_comment_or_another_name_is_no_edit(write_folder):
    folder = write_folder({"0001_a.py": body()})
    histories = {"x.ckpt": read_history(stamp({}, folder))}
    write_folder({"0001_a.py": body() + "# A comment.\n"})

    assert lint_folder(folder, histories=histories) == []


@pytest.mark.parametrize(
    ("line", "code", "expected"),
    [
        ("x = 1", "MC005", False),
        ("x = 1  # noqa", "MC005", True),
        ("x = 1  # noqa: MC005", "MC005", True),
        ("x = 1  # NOQA: E501, MC005", "MC005", True),
        ("x = 1  # noqa: MC006", "MC005", False),
    ],
)
def test_a_line_says_which_findings_are_meant_so(line, code, expected):
    assert is_meant_so(line, code) is expected


def test_what_is_meant_so_is_not_found(write_folder):
    line = "ckpt.pop('x', None)  # noqa: MC007"

    assert lint_folder(write_folder({"0001_a.py": body(line)})) == []


def test_what_is_found_twice_stands_there_once_and_in_order(write_folder):
    folder = write_folder({"0002_b.py": "", "0001_a.py": body("del ckpt['x']", "import time")})

    found = [(finding.path.name, finding.line) for finding in lint_folder(folder)]

    assert found == [("0001_a.py", 7), ("0001_a.py", 8), ("0002_b.py", 1), ("0002_b.py", 1)]


def test_nothing_of_the_folder_is_run(write_folder, tmp_path):
    touched = tmp_path / "touched"
    text = f"import pathlib\npathlib.Path({str(touched)!r}).touch()\n"

    lint_folder(write_folder({"0001_a.py": text + body(), "__init__.py": text}))

    assert not touched.exists()


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FolderError):
        lint_folder(tmp_path / "nowhere")


@pytest.mark.parametrize("form", ["operations", "handle"])
def test_a_new_migration_has_no_finding_and_can_be_loaded(tmp_path, form):
    new_migration(tmp_path, "rename_head", form=form)

    [migration] = get_folder_migrations(tmp_path)

    assert lint_folder(tmp_path) == []
    assert migration.title == "Rename head."
    assert (migration.operations is not None) == (form == "operations")


def test_a_folders_own_template_is_taken_unless_a_form_is_asked_for(write_folder):
    own = '"""{title}.\n\nTicket: ?\n"""\n\n\ndef handle(ckpt):\n    return {**ckpt, "own": True}\n'
    folder = write_folder({"_template.py": own})

    new_migration(folder, "first")
    new_migration(folder, "second", form="handle")

    ckpt, done = migrate_ckpt({}, get_folder_migrations(folder))
    assert ckpt["own"] is True
    assert [migration.title for migration in done] == ["First.", "Second."]
    assert "Ticket" not in (folder / "0002_second.py").read_text()


# On the checkpoint below each of them has something to do.
SAMPLES = {
    "drop": lambda: operations.drop("w"),
    "cast": lambda: operations.cast("float16"),
    "rename": lambda: operations.rename("w", "v"),
    "split": lambda: operations.split("w", ["a", "b"]),
    "add": lambda: operations.add("new", 0.0),
    "add_prefix": lambda: operations.add_prefix("net"),
    "drop_value": lambda: operations.drop_value("epoch"),
    "set_value": lambda: operations.set_value("epoch", 4),
    "move": lambda: operations.move("epoch", "step"),
    "normalise": lambda: operations.normalise(),
}


@pytest.mark.parametrize("verb", SAMPLES)
def test_a_verb_is_taken_for_lossy_if_it_has_no_inverse(verb):
    ckpt = {"state_dict": {"w": torch.ones(2)}, "epoch": 3, "path": pathlib.PurePosixPath("x")}

    try:
        SAMPLES[verb]().inverse(ckpt)
        is_lossy = False
    except NotInvertible:
        is_lossy = True

    assert (verb in LOSSY_OPERATIONS) is is_lossy


def test_the_examples_of_this_repository_have_no_finding():
    assert lint_folder(pathlib.Path(__file__).parents[3] / "migrations") == []


def test_every_verb_that_is_taken_for_lossy_is_there():
    assert set(operations.__all__) >= LOSSY_OPERATIONS

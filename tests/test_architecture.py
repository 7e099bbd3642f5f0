"""What is claimed of the code as a whole: who imports whom, and what never happens."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = ("app", "migrate_ckpt")

# Each of these runs code that a file names.
LOADERS = {
    ("cloudpickle", "load"),
    ("dill", "load"),
    ("joblib", "load"),
    ("numpy", "load"),
    ("pickle", "load"),
    ("pickle", "loads"),
    ("shelve", "open"),
    ("torch", "load"),
    ("torch.hub", "load"),
    ("torch.jit", "load"),
    ("torch.package", "PackageImporter"),
}


def sources() -> list[Path]:
    return [path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py")]


def dotted_name(node: ast.expr) -> str:
    """`a.b.c` of the expression a.b.c; empty for any other."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted_name(node.value)}.{node.attr}"
    return ""


def loaders_named_in(tree: ast.AST) -> set[tuple[str, str]]:
    named = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            named.add((dotted_name(node.value), node.attr))
        elif isinstance(node, ast.ImportFrom) and node.module:
            named |= {(node.module, alias.name) for alias in node.names}
    return named & LOADERS


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=REPOSITORY
    )
    return set(done.stdout.split())


def test_imports_point_one_way() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "code",
    ["torch.load(f)", "from pickle import loads", "torch.jit.load(f)", "import x; x = torch.load"],
)
def test_a_loader_is_seen_however_it_is_named(code: str) -> None:
    assert loaders_named_in(ast.parse(code))


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_module_names_a_loader_that_runs_what_a_file_says(path: Path) -> None:
    assert loaders_named_in(ast.parse(path.read_text())) == set()


@pytest.mark.parametrize(
    "module",
    [
        "migrate_ckpt",
        "migrate_ckpt.cli",
        "migrate_ckpt.stamping",
        "migrate_ckpt.operations",
        "migrate_ckpt.operations.normalising",
        "migrate_ckpt.operations.reshaping",
    ],
)
def test_importing_the_library_loads_the_standard_library_only(module: str) -> None:
    loaded = {name.partition(".")[0] for name in modules_after(f"import {module}")}

    foreign = loaded - set(sys.stdlib_module_names) - {"migrate_ckpt", "__main__"}
    # What an editable installation or a .pth file of the environment brings into every process.
    foreign -= {name.partition(".")[0] for name in modules_after("pass")}
    assert foreign == set()


def test_no_module_stands_in_for_a_public_name_once_all_are_imported() -> None:
    modules = [path.stem for path in (REPOSITORY / "migrate_ckpt").glob("[a-z]*.py")]
    code = (
        "import types, migrate_ckpt\n"
        + "".join(f"import migrate_ckpt.{module}\n" for module in modules)
        + "shadowed = [name for name in migrate_ckpt.__all__\n"
        + "            if isinstance(getattr(migrate_ckpt, name), types.ModuleType)]\n"
        + "raise SystemExit(', '.join(shadowed))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert done.stderr.strip() == ""


def test_web_process_loads_neither_torch_nor_a_migration() -> None:
    loaded = modules_after("from app.main import app")

    assert "torch" not in loaded
    assert "numpy" not in loaded

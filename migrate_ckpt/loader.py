"""Imports the migrations of a folder, each folder as a private package of its own.

The package has a name made from the folder's path, so two folders with the same file names do
not meet in `sys.modules`, and a second load of one folder takes the place of the first. Relative
imports work as in any package, and its `__init__.py` is run if there is one. A plain
`import _helpers` finds a module of the folder whose name starts with `_`, and `import helpers` a
package in it, before anything installed of that name but the standard library. No `.pyc` file
is read or written: the folder may be read-only, and what counts is the source that has a digest.
"""

from __future__ import annotations

import builtins
import hashlib
import importlib
import sys
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from os import PathLike
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from migrate_ckpt.errors import InvalidMigrationFile
from migrate_ckpt.folder import MigrationSet, read_folder, sub_folders
from migrate_ckpt.migration import Migration, MigrationCallback
from migrate_ckpt.migration_file import MigrationFile
from migrate_ckpt.operations.declared import (
    declared_migration,
    declared_requirements,
    declared_rules,
)

# A dot would split a file's name into package and module.
_DOT = "%2E"


def get_folder_migrations(path: str | PathLike[str]) -> list[Migration]:
    """Read a folder and import its migrations, in their order."""
    return load_migrations(read_folder(path))


def load_migrations(migration_set: MigrationSet) -> list[Migration]:
    """Import a set's files and return its migrations, in their order.

    Raises:
        InvalidMigrationFile: A file cannot be imported, its `handle` or `revert` cannot be called, or its
            `operations`, `requires` or `optimizer` are something else.
    """
    package = f"_migrate_ckpt_{_hash(migration_set.path)}"
    with _lock:
        _forget(package)
        _finder.enter(package, migration_set.path)
        try:
            return [_load(package, file) for file in migration_set.files]
        except BaseException:
            _forget(package)
            raise


def _hash(folder: Path) -> str:
    return hashlib.sha256(str(folder.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _forget(package: str) -> None:
    # Nothing of a package is there without the package; and to look through all names there are takes its time.
    if package in sys.modules:
        for name in [n for n in sys.modules if n == package or n.startswith(f"{package}.")]:
            del sys.modules[name]


def _load(package: str, file: MigrationFile) -> Migration:
    try:
        module = importlib.import_module(f"{package}.{file.name.replace('.', _DOT)}")
    except (Exception, SystemExit) as error:
        raise InvalidMigrationFile(
            f"{file.path.name} cannot be imported: {type(error).__name__}: {error}",
            path=file.path,
            name=file.name,
        ) from error
    revert = _function(module, file, "revert") if file.has_revert else None
    requires = getattr(module, "requires", None) if file.has_requirements else None
    optimizer = getattr(module, "optimizer", None) if file.has_optimizer_rules else None
    if file.is_declared:
        operations = getattr(module, "operations", None)
        declared = declared_migration(file, operations, requires, optimizer)
        return replace(declared, revert=revert, replaces=file.replaces)
    handle = _function(module, file, "handle")
    requirements = declared_requirements(file, requires)
    rules = declared_rules(file, optimizer)
    return Migration(
        file.name,
        handle,
        file.title,
        file.digest,
        requires=requirements,
        optimizer=rules,
        revert=revert,
        replaces=file.replaces,
    )


def _function(module: ModuleType, file: MigrationFile, name: str) -> MigrationCallback:
    """Return what a file has under a name.

    Raises:
        InvalidMigrationFile: It is no function.
    """
    function = getattr(module, name, None)
    if not callable(function):
        raise InvalidMigrationFile(
            f"The `{name}` of {file.path.name} cannot be called: make it a function.",
            path=file.path,
            name=file.name,
        )
    callback: MigrationCallback = function
    return callback


class _Finder(MetaPathFinder):
    """Finds the modules of the private packages, and no other."""

    def __init__(self) -> None:
        self._folders: dict[str, tuple[Path, Callable[..., Any]]] = {}

    def enter(self, package: str, folder: Path) -> None:
        self._folders[package] = folder.resolve(), _importer(package, _siblings(folder))
        if self not in sys.meta_path:
            # In front, for Python's own finder would find them too and keep .pyc files.
            sys.meta_path.insert(0, self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, *parts = fullname.split(".")
        if package not in self._folders:
            return None
        folder, importer = self._folders[package]
        place = folder.joinpath(*(part.replace(_DOT, ".") for part in parts))
        file = place.with_name(f"{place.name}.py")
        if parts and file.is_file():
            return spec_from_file_location(
                fullname, file, loader=_Loader(fullname, str(file), importer)
            )
        if not place.is_dir():
            return None
        init = place / "__init__.py"
        if init.is_file():
            return spec_from_file_location(
                fullname,
                init,
                loader=_Loader(fullname, str(init), importer),
                submodule_search_locations=[str(place)],
            )
        spec = ModuleSpec(fullname, None, is_package=True)
        spec.submodule_search_locations = [str(place)]
        return spec


class _Loader(SourceFileLoader):
    """Runs a file from its source, with an import statement that knows its siblings."""

    def __init__(self, fullname: str, path: str, importer: Callable[..., Any]) -> None:
        super().__init__(fullname, path)
        self._importer = importer

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code

    def exec_module(self, module: ModuleType) -> None:
        # The import statement takes `__import__` from here, wherever in the module it stands and
        # whenever it runs: no need to touch sys.path or the names in sys.modules.
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": self._importer}
        super().exec_module(module)


def _siblings(folder: Path) -> frozenset[str]:
    """Return what a plain import finds in the folder; sets and data are no packages."""
    packages = [p for p in sub_folders(folder, with_migrations=False) if any(p.glob("*.py"))]
    names = [*(p.stem for p in folder.glob("_*.py")), *(p.name for p in packages)]
    return frozenset(names) - sys.stdlib_module_names


def _importer(package: str, siblings: Collection[str]) -> Callable[..., Any]:
    def import_sibling_or_other(
        name: str,
        globals: Any = None,
        locals: Any = None,
        fromlist: Sequence[str] = (),
        level: int = 0,
    ) -> Any:
        top = name.partition(".")[0]
        if level or top not in siblings:
            return builtins.__import__(name, globals, locals, fromlist, level)
        module = builtins.__import__(f"{package}.{name}", globals, locals, fromlist)
        return module if fromlist else sys.modules[f"{package}.{top}"]

    return import_sibling_or_other


_lock = threading.RLock()
_finder = _Finder()

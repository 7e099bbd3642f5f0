"""The operation that gives a class another path in every place that names it, without importing either."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from migrate_ckpt.errors import KeysNotFound, OperationError
from migrate_ckpt.foreign import ForeignGlobal
from migrate_ckpt.migration import CkptType
from migrate_ckpt.operations.operation import Operation
from migrate_ckpt.operations.paths import Path, show_path
from migrate_ckpt.operations.rewriting import SAME, Rewriting
from migrate_ckpt.operations.state_dict_operation import Missing


@dataclass(frozen=True)
class RenameClass(Operation):
    """The old path of a class or function, and the new one; or those of a package, each with `.*` at its end."""

    old: str
    new: str
    missing: Missing = field(default="error", kw_only=True)

    def __post_init__(self) -> None:
        if self.old.endswith(".*") != self.new.endswith(".*"):
            raise ValueError("Both paths end with '.*', or neither does.")
        for path in (self.old, self.new):
            parts = path.replace(":", ".").removesuffix(".*").split(".")
            if not all(part.isidentifier() for part in parts) or (
                len(parts) < 2 and not path.endswith(".*")
            ):
                raise ValueError(
                    f"{path!r} is not the path of a class, such as 'package.module.Class'."
                )

    def __call__(self, ckpt: CkptType) -> CkptType:
        renaming = _Renaming(self)
        found = _Finding(self)
        found.of(ckpt, ())
        if found.real:
            raise OperationError(
                f"{show_path(found.real[0])} is a real object of {self.old}, imported and in memory. Only a "
                "class that is not imported can be renamed: migrate the file, or make an object of the new class.",
                operation=str(self),
                keys=[show_path(path) for path in found.real],
            )
        if not found.count and not found.count_of_new and self.missing == "error":
            raise KeysNotFound(
                f"The checkpoint names no {self.old}.", operation=str(self), keys=[self.old]
            )
        renamed: CkptType = renaming.of(ckpt, ())
        return renamed

    def inverse(self, ckpt: CkptType) -> tuple[Operation, ...]:
        found = _Finding(self)
        found.of(ckpt, ())
        if found.count_of_new:
            raise OperationError(
                f"The checkpoint names {self.new} already, which the way back would rename too.",
                operation=str(self),
            )
        return (RenameClass(self.new, self.old, missing=self.missing),)

    def declared_inverse(self) -> tuple[Operation, ...]:
        return (RenameClass(self.new, self.old, missing=self.missing),)

    def new_path(self, value: type) -> tuple[str, str] | None:
        """Return the new module and name of a class, or None if it is not meant."""
        module, name = value.__module__, value.__qualname__
        if self.old.endswith(".*"):
            package = self.old[:-2]
            if module != package and not module.startswith(f"{package}."):
                return None
            return self.new[:-2] + module[len(package) :], name
        separator = ":" if ":" in self.old else "."
        if self.old != f"{module}{separator}{name}":
            return None
        if ":" in self.new:
            new_module, _, new_name = self.new.partition(":")
            return new_module, new_name
        # A class inside of another has as many names under its new path.
        parts = self.new.rsplit(".", name.count(".") + 1)
        return parts[0], ".".join(parts[1:])


def rename_class(old: str, new: str, *, missing: Missing = "error") -> RenameClass:
    """Give a class another path: `rename_class("old_package.config.Config", "new_package.Config")`.

    Whatever names it gets the new path: objects of it, and references to it. Nothing is imported.
    On real objects in memory there is nothing to rename: objects of the new class are left as they are, and those of
    the old one are an error.

    Args:
        old: The path of a class or function; with `.*` at its end, of a package and all below it. A colon may stand
            between module and name.
        new: The new path, in the same form.
        missing: What to do where the checkpoint does not name it: "error", or "skip".
    """
    return RenameClass(old, new, missing=missing)


class _Renaming(Rewriting):
    def __init__(self, operation: RenameClass) -> None:
        super().__init__()
        self._operation = operation

    def replacement(self, value: Any, path: Path) -> Any:
        if not isinstance(value, ForeignGlobal):
            return SAME
        new = self._operation.new_path(value)
        return value if new is None else ForeignGlobal.named(*new)


class _Finding(Rewriting):
    """Changes nothing, and counts what names the class."""

    def __init__(self, operation: RenameClass) -> None:
        super().__init__()
        self._operation = operation
        self._back = RenameClass(operation.new, operation.old)
        self.count = 0
        self.count_of_new = 0
        self.real: list[Path] = []

    def replacement(self, value: Any, path: Path) -> Any:
        cls = value if isinstance(value, type) else type(value)
        if isinstance(value, ForeignGlobal):
            self.count += self._operation.new_path(value) is not None
        elif self._operation.new_path(cls) is not None:
            self.real.append(path)
        self.count_of_new += self._back.new_path(cls) is not None
        return SAME

"""Operations on what stands at a path, such as hyper-parameters; dicts, namespaces and configurations alike."""

from __future__ import annotations

import copy
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any

from migrate_ckpt.errors import KeyCollision, OperationError
from migrate_ckpt.migration import CkptType
from migrate_ckpt.operations.items import not_found, parent_items
from migrate_ckpt.operations.operation import Operation, literal
from migrate_ckpt.operations.paths import Path, PathLike, show_path, to_path, write_path
from migrate_ckpt.operations.state_dict_operation import Missing


@dataclass(frozen=True)
class PathOperation(Operation):
    """Changes what stands at a path; does nothing where nothing does, if `missing` is "skip"."""

    path: Path
    missing: Missing = field(default="error", kw_only=True)

    def __call__(self, ckpt: CkptType) -> CkptType:
        try:
            if self._is_there(ckpt):
                self._change(ckpt)
        except OperationError as error:
            error.operation = str(self)
            raise
        return ckpt

    def inverse(self, ckpt: CkptType) -> tuple[Operation, ...]:
        return self._undo(ckpt) if self._is_there(ckpt) else ()

    def arguments(self) -> list[str]:
        return [write_path(self.path), *super().arguments()[1:]]

    def _is_there(self, ckpt: CkptType) -> bool:
        """Tell whether there is anything to do.

        Raises:
            SectionNotFound: There is not, and `missing` is "error".
        """
        try:
            items = parent_items(ckpt, self.path)
            if self.path[-1] not in items:
                raise not_found(items, self.path, len(self.path) - 1)
        except OperationError:
            if self.missing == "error":
                raise
            return False
        return True

    @abstractmethod
    def _change(self, ckpt: CkptType) -> None: ...

    @abstractmethod
    def _undo(self, ckpt: CkptType) -> tuple[Operation, ...]: ...


@dataclass(frozen=True)
class SetValue(PathOperation):
    """The value to put at a path, whether something stands there or not."""

    value: Any

    def arguments(self) -> list[str]:
        # Of an argument a tuple is as good as a list; of a value it is another one.
        return [write_path(self.path), literal(self.value)]

    def _is_there(self, ckpt: CkptType) -> bool:
        parent_items(ckpt, self.path)
        return True

    def _change(self, ckpt: CkptType) -> None:
        # One value is set in many checkpoints, and each may change its own.
        parent_items(ckpt, self.path).write(self.path[-1], copy.deepcopy(self.value))

    def _undo(self, ckpt: CkptType) -> tuple[Operation, ...]:
        items = parent_items(ckpt, self.path)
        if self.path[-1] in items:
            return (_Restore(self.path, items.read(self.path[-1])),)
        return (DropValue(self.path),)


def set_value(path: PathLike, value: Any) -> SetValue:
    """Put a value at a path: `set_value("hyper_parameters.lr", 0.1)`.

    What the last name stands in must be there; the name itself need not be.

    Args:
        path: Names joined by dots, or a tuple of names.
        value: What to put there; each checkpoint gets a copy of its own. In a configuration of OmegaConf, which keeps
            each value in a node of its own, it can be a number, a text or None.
    """
    return SetValue(to_path(path), value)


@dataclass(frozen=True)
class RenameValue(PathOperation):
    """The new last name of a path."""

    name: str

    def _change(self, ckpt: CkptType) -> None:
        items = parent_items(ckpt, self.path)
        if self.name != self.path[-1] and self.name in items:
            raise _occupied((*self.path[:-1], self.name))
        items.rename(self.path[-1], self.name)

    def _undo(self, ckpt: CkptType) -> tuple[Operation, ...]:
        return (RenameValue((*self.path[:-1], self.name), self.path[-1]),)

    def declared_inverse(self) -> tuple[Operation, ...]:
        back = (*self.path[:-1], self.name)
        return (RenameValue(back, self.path[-1], missing=self.missing),)


def rename_value(path: PathLike, name: str, *, missing: Missing = "error") -> RenameValue:
    """Give what stands at a path another name: `rename_value("hyper_parameters.lr", "learning_rate")`.

    It keeps its place among the others.

    Args:
        path: Names joined by dots, or a tuple of names.
        name: The new last name alone.
        missing: What to do where nothing stands there: "error", or "skip".
    """
    return RenameValue(to_path(path), name, missing=missing)


@dataclass(frozen=True)
class DropValue(PathOperation):
    """Removes what stands at a path."""

    def _change(self, ckpt: CkptType) -> None:
        parent_items(ckpt, self.path).take(self.path[-1])

    def _undo(self, ckpt: CkptType) -> tuple[Operation, ...]:
        items = parent_items(ckpt, self.path)
        return (
            _Restore(self.path, items.read(self.path[-1])),
            _Arrange(self.path, tuple(items.names())),
        )

    def declared_inverse(self) -> tuple[Operation, ...]:
        raise self._not_invertible("what it drops is given up")


def drop_value(path: PathLike, *, missing: Missing = "error") -> DropValue:
    """Remove what stands at a path: `drop_value("callbacks")`.

    Args:
        path: Names joined by dots, or a tuple of names.
        missing: What to do where nothing stands there: "error", or "skip".
    """
    return DropValue(to_path(path), missing=missing)


@dataclass(frozen=True)
class Move(PathOperation):
    """The path that what stands at another comes to stand at."""

    target: Path

    def arguments(self) -> list[str]:
        return [write_path(self.path), write_path(self.target)]

    def _change(self, ckpt: CkptType) -> None:
        source, target = parent_items(ckpt, self.path), parent_items(ckpt, self.target)
        if self.target[-1] in target:
            raise _occupied(self.target)
        if self.target[: len(self.path)] == self.path:
            raise OperationError(f"{show_path(self.path)} cannot be moved into itself.")
        value = source.read(self.path[-1])
        target.write(self.target[-1], value)
        source.take(self.path[-1])

    def _undo(self, ckpt: CkptType) -> tuple[Operation, ...]:
        names = tuple(parent_items(ckpt, self.path).names())
        return Move(self.target, self.path), _Arrange(self.path, names)

    def declared_inverse(self) -> tuple[Operation, ...]:
        return (Move(self.target, self.path, missing=self.missing),)


def move(source: PathLike, target: PathLike, *, missing: Missing = "error") -> Move:
    """Move what stands at a path, such as a section, to another: `move("extra.ema", "ema")`.

    Args:
        source: Names joined by dots, or a tuple of names.
        target: Where nothing stands yet; what its last name comes to stand in must be there.
        missing: What to do where nothing stands at the source: "error", or "skip".
    """
    return Move(to_path(source), to_path(target), missing=missing)


@dataclass(frozen=True)
class _Restore(SetValue):
    """Puts back the very value that was taken, not a copy."""

    def _change(self, ckpt: CkptType) -> None:
        parent_items(ckpt, self.path).write(self.path[-1], self.value)


@dataclass(frozen=True)
class _Arrange(PathOperation):
    """Brings the names beside the last one of a path into an order they once had."""

    names: tuple[Any, ...]

    def _change(self, ckpt: CkptType) -> None:
        parent_items(ckpt, self.path).arrange(self.names)

    def _undo(self, ckpt: CkptType) -> tuple[Operation, ...]:
        return (_Arrange(self.path, tuple(parent_items(ckpt, self.path).names())),)


def _occupied(path: Path) -> KeyCollision:
    return KeyCollision(f"Something stands at {show_path(path)!r} already.", keys=[show_path(path)])

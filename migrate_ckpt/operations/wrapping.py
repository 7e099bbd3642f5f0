"""Operations that take a section out of what is around it, and put one around."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

from migrate_ckpt.errors import KeyCollision, NotInvertible, OperationError, SectionNotFound
from migrate_ckpt.history import ckpt_migration_key, is_flat_state_dict, records_key
from migrate_ckpt.migration import CkptType
from migrate_ckpt.operations.items import parent_items
from migrate_ckpt.operations.module_versions import versions_of
from migrate_ckpt.operations.moves import list_keys, replace_items
from migrate_ckpt.operations.operation import Operation
from migrate_ckpt.operations.sections import find_sections

_HISTORY = (ckpt_migration_key, records_key)


@dataclass(frozen=True)
class Unwrap(Operation):
    """The name of a section at the top whose items come to stand at the top."""

    name: str

    def __call__(self, ckpt: CkptType) -> CkptType:
        section, rest = self._find(ckpt)
        if not rest:
            return section
        collisions = [key for key in section if key in rest]
        if collisions:
            raise KeyCollision(
                f"{list_keys(collisions)} would stand beside another of the name.",
                operation=str(self),
                keys=collisions,
            )
        versions = versions_of(section)
        if versions is not None:
            if not isinstance(ckpt, OrderedDict) or versions_of(ckpt) is not None:
                raise OperationError(
                    f"The module versions of {self.name} cannot be kept beside {list_keys(rest)}: drop or move that "
                    "first.",
                    operation=str(self),
                    keys=rest,
                )
            vars(ckpt)["_metadata"] = versions
        items: dict[Any, Any] = {}
        for key, value in ckpt.items():
            items.update(section if key == self.name else {key: value})
        replace_items(ckpt, items)
        return ckpt

    def inverse(self, ckpt: CkptType) -> tuple[Operation, ...]:
        section, rest = self._find(ckpt)
        return (_Rewrap(self.name, ckpt, tuple(ckpt), section, tuple(section), is_whole=not rest),)

    def declared_inverse(self) -> tuple[Operation, ...]:
        return (_WrapFlat(self.name),)

    def _find(self, ckpt: CkptType) -> tuple[MutableMapping[Any, Any], list[Any]]:
        """Return the section, and the names beside it; a history does not count."""
        try:
            ((_, section),) = find_sections(ckpt, ((self.name,),))
        except SectionNotFound as error:
            error.operation = str(self)
            raise
        return section, [key for key in ckpt if key != self.name and key not in _HISTORY]


def unwrap(name: str) -> Unwrap:
    """Let the items of a section at the top take its place: `unwrap("state_dict")`.

    Where there is nothing beside it the section is the checkpoint then, a flat state dict with its module versions;
    otherwise its items stand beside the others. `drop_value` and `move` make room before.
    """
    return Unwrap(name)


@dataclass(frozen=True)
class Wrap(Operation):
    """The name that the whole checkpoint comes to stand under."""

    name: str

    def __call__(self, ckpt: CkptType) -> CkptType:
        wrapped: CkptType = {self.name: ckpt}
        # A file may hold something else, such as a bare tensor, which has no history.
        for holder in (ckpt, versions_of(ckpt)):
            for key in _HISTORY:
                if isinstance(holder, MutableMapping) and key in holder:
                    wrapped[key] = holder.pop(key)
        return wrapped

    def inverse(self, ckpt: CkptType) -> tuple[Operation, ...]:
        return self.declared_inverse()

    def declared_inverse(self) -> tuple[Operation, ...]:
        return (Unwrap(self.name),)


class _WrapFlat(Wrap):
    """Puts a checkpoint that is a state dict and nothing else back under a name."""

    def __call__(self, ckpt: CkptType) -> CkptType:
        if not is_flat_state_dict(ckpt):
            raise NotInvertible(
                f"what stood beside {self.name} cannot be told from what stood in it.",
                operation=str(self),
            )
        return super().__call__(ckpt)

    @property
    def verb(self) -> str:
        return "wrap"


def wrap(name: str) -> Wrap:
    """Put the whole checkpoint under a name: `wrap("state_dict")`. A history stays at the top.

    What is no mapping, such as a file of one bare tensor, becomes a checkpoint by it.
    """
    return Wrap(name)


@dataclass(frozen=True)
class _Rewrap(Operation):
    """Puts a section that was unwrapped back into what was around it, each the object that it was."""

    name: str
    around: CkptType
    order: tuple[Any, ...]
    section: MutableMapping[Any, Any]
    keys: tuple[Any, ...]
    is_whole: bool

    def __call__(self, ckpt: CkptType) -> CkptType:
        if self.is_whole:
            history = {key: self.around[key] for key in _HISTORY if key in self.around}
            replace_items(self.around, {self.name: ckpt, **history})
        else:
            replace_items(self.section, {key: ckpt[key] for key in self.keys})
            rest = {key: value for key, value in ckpt.items() if key not in self.section}
            replace_items(self.around, {**rest, self.name: self.section})
            if versions_of(self.section) is not None:
                vars(self.around).pop("_metadata", None)
        parent_items(self.around, (self.name,)).arrange(self.order)
        return self.around

    def inverse(self, ckpt: CkptType) -> tuple[Operation, ...]:
        return (Unwrap(self.name),)

    def __str__(self) -> str:
        return f"undo(unwrap({self.name!r}))"

"""The operation that gives layers other numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from migrate_ckpt.errors import IncompleteGroup, OperationError
from migrate_ckpt.operations.moves import Move, list_keys
from migrate_ckpt.operations.operation import Operation
from migrate_ckpt.operations.paths import PathLike
from migrate_ckpt.operations.patterns import compiled, fill, placeholders
from migrate_ckpt.operations.sections import own_keys, to_sections
from migrate_ckpt.operations.state_dict_operation import Missing, StateDictOperation


@dataclass(frozen=True)
class Reindex(StateDictOperation):
    """The beginning of the keys with the number as a placeholder, and what becomes of the numbers."""

    layers: str
    numbers: tuple[tuple[int, int], ...] | None = None
    shift: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        compiled(self.layers)
        if not re.search(r"(^|\.)\{\w+(:int)?\}$", self.layers):
            raise ValueError(f"{self.layers!r} must end with the number, as 'layers.{{i}}' does.")
        if (self.numbers is None) == (self.shift == 0):
            raise ValueError("reindex takes a mapping of numbers, or a shift other than 0.")

    def arguments(self) -> list[str]:
        return [repr(self.layers)] + ([repr(dict(self.numbers))] if self.numbers else [])

    def moves(self, state_dict: Mapping[str, Any]) -> tuple[Move, ...]:
        keys = own_keys(state_dict)
        name = placeholders(self.layers)[-1]
        pattern = re.compile(f"{compiled(self.layers).pattern}(?P<_rest>\\..*)?", re.DOTALL)
        found = [m for m in map(pattern.fullmatch, keys) if m and _is_number(m[name])]
        if not found:
            return self._found_none([self.layers], keys)
        self._check_all_there({int(m[name]) for m in found})
        pairs = []
        for m in found:
            layer = fill(self.layers, {**m.groupdict(), name: str(self._new(int(m[name])))})
            pairs.append((m.string, layer + (m["_rest"] or "")))
        return tuple(Move((old,), (new,)) for old, new in pairs if old != new)

    def declared_inverse(self) -> tuple[Operation, ...]:
        back = None if self.numbers is None else tuple((new, old) for old, new in self.numbers)
        return (replace(self, numbers=back, shift=-self.shift),)

    def _new(self, number: int) -> int:
        new = (
            number + self.shift if self.numbers is None else dict(self.numbers).get(number, number)
        )
        if new < 0:
            raise OperationError(f"the layer {number} would get the number {new}.")
        return new

    def _check_all_there(self, present: set[int]) -> None:
        if self.numbers is None or self.missing == "skip":
            return
        absent = [
            self.layers.rpartition("{")[0] + str(n) for n, _ in self.numbers if n not in present
        ]
        if absent:
            raise IncompleteGroup(f"there is no {list_keys(absent)} to renumber.", keys=absent)


def _is_number(text: str) -> bool:
    return re.fullmatch("0|[1-9][0-9]*", text) is not None


def reindex(
    layers: str,
    numbers: Mapping[int, int] | None = None,
    *,
    shift: int = 0,
    section: PathLike | list[PathLike] | None = None,
    missing: Missing = "error",
) -> Reindex:
    """Give layers other numbers: `reindex("layers.{i}", {0: 1, 1: 0})`, `reindex("layers.{i}", shift=1)`.

    Args:
        layers: How the keys of a layer begin, up to its number.
        numbers: Old numbers and new ones; a layer that is not among them keeps its number.
        shift: What to add to each number, in place of `numbers`.
        section: The path of the state dict, or a list of paths; None is the model's.
        missing: What to do where a layer is not there: "error", or "skip" it.

    Raises:
        ValueError: Two layers would get one number, or `layers` does not end with a placeholder.
    """
    if numbers is not None and len(set(numbers.values())) < len(numbers):
        raise ValueError("Two layers would get one number.")
    return Reindex(
        layers,
        None if numbers is None else tuple(numbers.items()),
        shift=shift,
        section=to_sections(section),
        missing=missing,
    )

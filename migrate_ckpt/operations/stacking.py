"""Operations on numbered tensors of one shape, such as those of experts: many become one, and one many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from migrate_ckpt.errors import IncompleteGroup, OperationError
from migrate_ckpt.operations.moves import Move, list_keys
from migrate_ckpt.operations.operation import Operation
from migrate_ckpt.operations.paths import PathLike
from migrate_ckpt.operations.patterns import check_same_placeholders, fill, match, placeholders
from migrate_ckpt.operations.sections import is_tensor, own_keys, to_sections
from migrate_ckpt.operations.state_dict_operation import Missing, StateDictOperation
from migrate_ckpt.operations.tensor_transforms import StackTensors, UnstackTensor


@dataclass(frozen=True)
class Stack(StateDictOperation):
    """A template of the parts, of which one placeholder counts, and the name of the whole."""

    source: str
    target: str
    over: str = field(kw_only=True)
    dim: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        _check("stack", self.source, self.target, self.over)

    def moves(self, state_dict: Mapping[str, Any]) -> tuple[Move, ...]:
        keys = own_keys(state_dict)
        groups: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
        for key in keys:
            found = match(self.source, key)
            if found is not None:
                number = found.pop(self.over)
                groups.setdefault(tuple(sorted(found.items())), {})[number] = key
        action = StackTensors(self.dim)
        moves = tuple(
            Move(tuple(self._in_order(parts)), (fill(self.target, dict(found)),), action)
            for found, parts in groups.items()
        )
        return moves or self._found_none([self.source], keys)

    def declared_inverse(self) -> tuple[Operation, ...]:
        return (
            Unstack(
                self.target,
                self.source,
                over=self.over,
                dim=self.dim,
                section=self.section,
                missing=self.missing,
            ),
        )

    def _in_order(self, parts: Mapping[str, str]) -> list[str]:
        """Return the keys of a whole's parts by their numbers, which leave none out."""
        wanted = [str(number) for number in range(len(parts))]
        absent = [number for number in wanted if number not in parts]
        if absent:
            found = sorted(parts.values())
            raise IncompleteGroup(
                f"{list_keys(found)} would be stacked, and among them there is no {absent[0]}: "
                f"the numbers must be 0 to {len(parts) - 1}.",
                keys=found,
            )
        return [parts[number] for number in wanted]


def stack(
    source: str,
    target: str,
    *,
    over: str,
    dim: int = 0,
    section: PathLike | list[PathLike] | None = None,
    missing: Missing = "error",
) -> Stack:
    """Put numbered tensors beside each other in one: `stack("experts.{e}.w", "experts.w", over="e")`.

    The whole stands where part 0 stood. The numbers of the parts must be 0, 1, 2 and so on without a hole.

    Args:
        source: A template with a placeholder for the number.
        target: The name of the whole, with the same placeholders but that one.
        over: The placeholder that is the number.
        dim: Where the new dimension goes.
        section: The path of the state dict, or a list of paths; None is the model's.
        missing: What to do where no part is found: "error", or "skip".
    """
    return Stack(source, target, over=over, dim=dim, section=to_sections(section), missing=missing)


@dataclass(frozen=True)
class Unstack(StateDictOperation):
    """The name of the whole, and a template of the parts, of which one placeholder counts."""

    source: str
    target: str
    over: str = field(kw_only=True)
    dim: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        _check("unstack", self.target, self.source, self.over)

    def moves(self, state_dict: Mapping[str, Any]) -> tuple[Move, ...]:
        keys = own_keys(state_dict)
        moves = []
        for key in keys:
            found = match(self.source, key)
            if found is not None:
                count = self._count(key, state_dict[key])
                targets = tuple(
                    fill(self.target, {**found, self.over: str(number)}) for number in range(count)
                )
                moves.append(Move((key,), targets, UnstackTensor(self.dim, count)))
        return tuple(moves) or self._found_none([self.source], keys)

    def declared_inverse(self) -> tuple[Operation, ...]:
        return (
            Stack(
                self.target,
                self.source,
                over=self.over,
                dim=self.dim,
                section=self.section,
                missing=self.missing,
            ),
        )

    def _count(self, key: str, value: Any) -> int:
        if not is_tensor(value) or not -value.dim() <= self.dim < value.dim():
            what = f"of shape {tuple(value.shape)}" if is_tensor(value) else "no tensor"
            raise OperationError(f"{key!r} is {what} and has no dimension {self.dim}.", keys=[key])
        count: int = value.shape[self.dim]
        return count


def unstack(
    source: str,
    target: str,
    *,
    over: str,
    dim: int = 0,
    section: PathLike | list[PathLike] | None = None,
    missing: Missing = "error",
) -> Unstack:
    """Take tensors apart into numbered ones: `unstack("experts.w", "experts.{e}.w", over="e")`.

    The parts stand where the whole stood, and each has memory of its own.

    Args:
        source: A key or a template.
        target: The template of the parts, with the same placeholders and one for the number.
        over: The placeholder that is the number, from 0 on.
        dim: The dimension that goes.
        section: The path of the state dict, or a list of paths; None is the model's.
        missing: What to do where no key is found: "error", or "skip".
    """
    return Unstack(
        source, target, over=over, dim=dim, section=to_sections(section), missing=missing
    )


def _check(verb: str, parts: str, whole: str, over: str) -> None:
    """Refuse templates of which one does not follow from the other.

    Raises:
        ValueError: It does not.
    """
    if over not in placeholders(parts) or over in placeholders(whole):
        raise ValueError(
            f"{verb} goes over {over!r}, which must be a placeholder of {parts!r} and none of {whole!r}."
        )
    check_same_placeholders(parts, f"{whole}.{{{over}}}")

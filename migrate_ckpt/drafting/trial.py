"""The operations that were written so far, each tried out on the form of the old state dict."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from migrate_ckpt.drafting.others import forms_of
from migrate_ckpt.drafting.templates import Names, best_template
from migrate_ckpt.errors import OperationError
from migrate_ckpt.operations.operation import Operation
from migrate_ckpt.operations.renaming import Rename
from migrate_ckpt.operations.state_dict_operation import StateDictOperation
from migrate_ckpt.operations.transforming import Permute

Build = Callable[[Names], StateDictOperation]
InPlace = Callable[[tuple[str, ...]], StateDictOperation]


@dataclass(frozen=True, slots=True)
class Drafted:
    """One operation of a draft, how many keys it concerns, and those of which it is only likely that they are meant."""

    operation: Operation
    count: int
    likely: tuple[str, ...] = ()


class Trial:
    """A state dict of shapes and dtypes, and what was done to it.

    Attributes:
        state: What it has become.
        drafted: The operations, in their order.
        blocked: Renames that could not be made, as a key that nothing is known of has the name.
    """

    def __init__(
        self, old: Mapping[str, Any], new: Collection[str], likely: Collection[str]
    ) -> None:
        """Begin with the old state dict; of the keys that are likely only each operation says so."""
        self.state = forms_of(old)
        self.drafted: list[Drafted] = []
        self.blocked: list[tuple[str, str]] = []
        self._new = new
        self._likely = likely
        self._now = {key: key for key in old}

    def name_of(self, source: str) -> str:
        """Return what an old key, or a part of one, is called by now."""
        return self._now[source]

    def names(self, sources: Iterable[str]) -> list[str]:
        """Return what old keys are called by now."""
        return [self._now[source] for source in sources]

    def new_piece(self, name: str) -> str:
        """Return what stands for a part of a tensor, wherever that is renamed to. No key of a state dict is like it."""
        piece = f"\0{len(self._now)}"
        self._now[piece] = name
        return piece

    def free_name(self, name: str) -> str:
        while name in self.state or name in self._now or name in self._new:
            name += "_"
        return name

    def makes_alone(self, build: Build, wanted: Names) -> bool:
        """Tell whether an operation makes this move and no other."""
        try:
            moves = build(wanted).moves(self.state)
        except (OperationError, ValueError):
            return False
        return [Names(move.sources, move.targets) for move in moves] == [wanted]

    def in_place(self, keys: Iterable[str], build: InPlace) -> None:
        """Apply one operation to keys, written as templates."""
        left = dict.fromkeys(Names((key,), (key,)) for key in keys)
        templates: list[str] = []
        for first in list(left):
            if first in left:
                template, covered = best_template(first, left, self._keys_like)
                templates.append(template.sources[0])
                for each in covered:
                    del left[each]
        if templates:
            self.apply(build(tuple(templates)))

    def _keys_like(self, names: Names) -> Sequence[Any]:
        return Permute((names.sources[0],), (0,)).moves(self.state)

    def emit(self, moves: Iterable[Names], build: Build) -> None:
        """Apply operations that make moves; where they would be in each other's way, all renames at once."""
        left = dict.fromkeys(moves)
        while left:
            for first in list(left):
                template, _ = best_template(first, left, self._moves_of(build))
                operation = build(template)
                made = [Names(m.sources, m.targets) for m in operation.moves(self.state)]
                try:
                    self.apply(operation)
                except OperationError:
                    continue
                for each in made:
                    del left[each]
                break
            else:
                self._rename_at_once([(n.sources[0], n.targets[0]) for n in left])
                return

    def _rename_at_once(self, pairs: list[tuple[str, str]]) -> None:
        """Rename what changes places; what would take the place of a key that stays is left, and said so."""
        while True:
            olds = {old for old, _ in pairs}
            blocked = [pair for pair in pairs if pair[1] in self.state and pair[1] not in olds]
            if not blocked:
                break
            self.blocked += blocked
            pairs = [pair for pair in pairs if pair not in blocked]
        if pairs:
            self.apply(Rename(tuple(pairs)))

    def _moves_of(self, build: Build) -> Callable[[Names], Sequence[Any]]:
        return lambda names: build(names).moves(self.state)

    def apply(self, operation: StateDictOperation) -> None:
        moves = operation.moves(self.state)
        operation(self.state)
        renamed = {
            m.sources[0]: m.targets[0] for m in moves if len(m.sources) == len(m.targets) == 1
        }
        touched = {key for move in moves for key in move.sources}
        likely = [key for key, now in self._now.items() if now in touched and key in self._likely]
        self._now = {key: renamed.get(now, now) for key, now in self._now.items()}
        self.drafted.append(Drafted(operation, len(moves), tuple(likely)))

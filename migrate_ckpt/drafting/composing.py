"""Writes what was found of two state dicts as operations, each tried out on the form of the old one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from migrate_ckpt.drafting.braces import set_aside_braces
from migrate_ckpt.drafting.makings import Making, Part
from migrate_ckpt.drafting.matching import Match
from migrate_ckpt.drafting.numbering import find_renumberings
from migrate_ckpt.drafting.others import forms_of
from migrate_ckpt.drafting.prefixes import find_prefixes
from migrate_ckpt.drafting.templates import Names, best_template, template_over
from migrate_ckpt.errors import OperationError
from migrate_ckpt.operations.contents import Add, Drop
from migrate_ckpt.operations.moves import identity
from migrate_ckpt.operations.operation import Operation
from migrate_ckpt.operations.renaming import Rename
from migrate_ckpt.operations.reshaping import Cast, Concat, Split
from migrate_ckpt.operations.stacking import Stack, Unstack
from migrate_ckpt.operations.state_dict_operation import StateDictOperation
from migrate_ckpt.operations.transforming import (
    Pad,
    Permute,
    PermuteRows,
    ReshapeTo,
    Transpose,
    Trim,
)
from migrate_ckpt.operations.tying import Tie

Build = Callable[[Names], StateDictOperation]
InPlace = Callable[[tuple[str, ...]], StateDictOperation]


@dataclass(frozen=True, slots=True)
class Drafted:
    """One operation of a draft, how many keys it concerns, and those of which it is only likely that they are meant."""

    operation: Operation
    count: int
    likely: tuple[str, ...] = ()


class Composed(NamedTuple):
    """What came of a match: the operations, and which became which is left to decide, by the names after them."""

    drafted: list[Drafted]
    undecided: list[tuple[tuple[str, ...], tuple[str, ...]]]


def compose(match: Match, old: Mapping[str, Any], new: Mapping[str, Any]) -> Composed:
    """Return the operations that make a state dict of another, in their order."""
    left = set_aside_braces(match)
    composer = _Composer(match, old, new)
    composer.drop(match.dropped)
    composer.move_modules()
    composer.change_views()
    composer.cut()
    composer.join()
    composer.rename()
    composer.put_in()
    undecided = [(tuple(composer.names(olds)), tuple(news)) for olds, news in match.undecided]
    undecided += [((old,), (new,)) for old, new in composer.blocked]
    undecided += [(tuple(composer.names(olds)), news) for olds, news in left]
    return Composed(_doubted_once(composer.drafted), undecided)


def _doubted_once(drafted: Sequence[Drafted]) -> list[Drafted]:
    """Leave each doubt with the last operation that concerns the key, which says most of it."""
    last = {key: n for n, each in enumerate(drafted) for key in each.likely}
    return [
        replace(each, likely=tuple(key for key in each.likely if last[key] == n))
        for n, each in enumerate(drafted)
    ]


class _Composer:
    def __init__(self, match: Match, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        self._match, self._new = match, new
        self._makings = list(match.makings.values())
        self._state = forms_of(old)
        self._now = {key: key for key in old}
        """What the old keys are called by now."""
        self._pieces: dict[tuple[str, int], str] = {}
        """What the parts of new tensors are called by now, by target and number."""
        self._likely = {
            source for m in self._makings if m.certainty == "likely" for source in m.sources
        }
        self.drafted: list[Drafted] = []
        self.blocked: list[tuple[str, str]] = []
        """Renames that cannot be made, as a key that nothing is known of has the name."""

    def drop(self, keys: Iterable[str]) -> None:
        self._in_place(keys, Drop)

    def move_modules(self) -> None:
        """Take prefixes off or put them on, and give layers other numbers, for all keys at once."""
        for operation in find_prefixes(self._pairs(), self._state):
            self._apply(operation)
        for operation in find_renumberings(self._pairs(), self._state):
            self._apply(operation)

    def _pairs(self) -> list[tuple[str, str]]:
        pairs = [(self._now[key], key) for key in self._match.kept]
        return pairs + [(self._now[s], m.target) for m in self._makings for s in m.sources]

    def change_views(self) -> None:
        """Permute, cast and reshape the old tensors, under the names that they have."""
        by_dims: dict[tuple[int, ...], list[str]] = defaultdict(list)
        by_dtype: dict[str, list[str]] = defaultdict(list)
        by_shape: dict[tuple[int, ...], list[str]] = defaultdict(list)
        for making in self._makings:
            for part in making.parts:
                for value, groups in (
                    (part.view.dims, by_dims),
                    (part.view.dtype, by_dtype),
                    (part.view.shape, by_shape),
                ):
                    if value is not None and part.source not in groups[value]:  # type: ignore[index]
                        groups[value].append(part.source)  # type: ignore[index]
        for dims, sources in by_dims.items():
            self._in_place(self.names(sources), _permuting(dims))
        for dtype, sources in by_dtype.items():
            self._cast(dtype, self.names(sources))
        for shape, sources in by_shape.items():
            self._in_place(self.names(sources), lambda keys, shape=shape: ReshapeTo(keys, shape))  # type: ignore[misc]

    def names(self, sources: Iterable[str]) -> list[str]:
        """Return what old keys are called by now."""
        return [self._now[source] for source in sources]

    def _cast(self, dtype: str, keys: list[str]) -> None:
        everything = Cast(dtype)
        cast = {move.sources[0] for move in everything.moves(self._state)}
        open_cases = set(self.names(key for olds, _ in self._match.undecided for key in olds))
        if set(keys) <= cast and cast - set(keys) <= open_cases:
            self._apply(everything)
            return
        floating = [key for key in keys if self._state[key].is_floating_point()]
        others = [key for key in keys if not self._state[key].is_floating_point()]
        self._in_place(floating, lambda templates: Cast(dtype, keys=templates))
        self._in_place(others, lambda templates: Cast(dtype, keys=templates, integers=True))

    def cut(self) -> None:
        """Cut the old tensors that more than one new is made of, or not all of which is used."""
        cuts: dict[str, list[tuple[Part, Making, int]]] = defaultdict(list)
        for making in self._makings:
            for number, part in enumerate(making.parts):
                if part.is_whole:
                    self._pieces[making.target, number] = part.source
                else:
                    cuts[part.source].append((part, making, number))
        wanted: dict[Any, list[Names]] = defaultdict(list)
        unused: list[str] = []
        trimmed: dict[tuple[int, int, int], list[str]] = defaultdict(list)
        for source, parts in cuts.items():
            self._cut_one(source, parts, wanted, unused, trimmed)
        for (count, start, dim), names in trimmed.items():
            self._in_place(names, lambda k, c=count, s=start, d=dim: Trim(k, c, start=s, dim=d))  # type: ignore[misc]
        for build, moves in wanted.items():
            self._emit(moves, build)
        self.drop(unused)

    def _cut_one(
        self,
        source: str,
        parts: list[tuple[Part, Making, int]],
        wanted: dict[Any, list[Names]],
        unused: list[str],
        trimmed: dict[tuple[int, int, int], list[str]],
    ) -> None:
        name, making = self._now[source], parts[0][1]
        if making.kind == "taken":
            self._unstack(source, [m.target for _, m, _ in parts], making.dim, wanted)
            return
        if parts[0][0].rows:
            parts = self._with_rows_in_order(name, parts, making.dim)
        parts.sort(key=lambda each: each[0].start or 0)
        length = self._state[name].shape[making.dim]
        if len(parts) == 1:
            part, _, number = parts[0]
            assert part.start is not None
            assert part.stop is not None
            trimmed[part.stop - part.start, part.start, making.dim].append(name)
            self._pieces[making.target, number] = source
            return
        names: list[str] = []
        sizes: list[int] = []
        end = 0
        for part, each, number in [*parts, (Part("", start=length, stop=length), making, -1)]:
            assert part.start is not None
            assert part.stop is not None
            if part.start > end:
                names.append(self._free(f"{name}.unused{len(names)}"))
                sizes.append(part.start - end)
                unused.append(names[-1])
            if part.stop > part.start:
                names.append(self._name_of_part(name, len(names), each))
                sizes.append(part.stop - part.start)
                self._pieces[each.target, number] = self._new_piece(names[-1])
            end = part.stop
        is_equal = len(set(sizes)) == 1
        build = _Splitting(None if is_equal else tuple(sizes), making.dim)
        wanted[build].append(Names((name,), tuple(names)))

    def _with_rows_in_order(
        self, name: str, parts: list[tuple[Part, Making, int]], dim: int
    ) -> list[tuple[Part, Making, int]]:
        order = tuple(row for part, _, _ in parts for row in part.rows)
        length = self._state[name].shape[dim]
        rest = tuple(sorted(set(range(length)) - set(order)))
        self._in_place([name], lambda keys: PermuteRows(keys, order + rest, dim=dim))
        ordered, end = [], 0
        for part, making, number in parts:
            stop = end + len(part.rows)
            ordered.append((Part(part.source, start=end, stop=stop), making, number))
            end = stop
        return ordered

    def _unstack(
        self, source: str, targets: list[str], dim: int, wanted: dict[Any, list[Names]]
    ) -> None:
        name = self._now[source]
        template = template_over(targets)
        if template is None or any(target in self._state for target in targets):
            template = self._free(name + ".rows") + ".{n}"
        made = [template.replace("{n}", str(n)) for n in range(len(targets))]
        for target, piece in zip(targets, made, strict=True):
            self._pieces[target, 0] = self._new_piece(piece)
        wanted[_Unstacking(template, dim)].append(Names((name,), tuple(made)))

    def _name_of_part(self, name: str, number: int, making: Making) -> str:
        """Return the name of a part: that of the new tensor, if it is all of it and the name is free."""
        is_all = len(making.parts) == 1 and not making.order and not making.padding
        is_free = making.target not in self._state
        return making.target if is_all and is_free else self._free(f"{name}.part{number}")

    def _new_piece(self, name: str) -> str:
        """Return what stands for a part of a tensor, wherever that is renamed to. No key of a state dict is like it."""
        piece = f"\0{len(self._now)}"
        self._now[piece] = name
        return piece

    def join(self) -> None:
        """Join, stack, order and pad what the new tensors are made of."""
        wanted: dict[Any, list[Names]] = defaultdict(list)
        for making in self._makings:
            if len(making.parts) < 2 and making.kind != "stacked":
                continue
            names = tuple(
                self._now[self._pieces[making.target, n]] for n in range(len(making.parts))
            )
            target = making.target
            if target in self._state and target not in names:
                target = self._free(f"{target}.whole")
            build: Build
            if making.kind == "stacked":
                build = _Stacking(making.dim)
                if not self._makes_alone(build, Names(names, (target,))):
                    numbered = [self._free(f"{making.target}.{n}") for n in range(len(names))]
                    self._emit(
                        [Names((a,), (b,)) for a, b in zip(names, numbered, strict=True)], _renaming
                    )
                    names = tuple(numbered)
            else:
                build = _Joining(making.dim)
            wanted[build].append(Names(names, (target,)))
            self._pieces[making.target, 0] = self._new_piece(target)
        for build, moves in wanted.items():
            self._emit(moves, build)
        self._order_and_pad()

    def _makes_alone(self, build: Build, wanted: Names) -> bool:
        """Tell whether an operation makes this move and no other."""
        try:
            moves = build(wanted).moves(self._state)
        except (OperationError, ValueError):
            return False
        return [Names(move.sources, move.targets) for move in moves] == [wanted]

    def _order_and_pad(self) -> None:
        orders: dict[tuple[tuple[int, ...], int], list[str]] = defaultdict(list)
        pads: dict[tuple[int, float, int], list[str]] = defaultdict(list)
        for making in self._makings:
            name = self._now[self._pieces[making.target, 0]]
            if making.order:
                orders[making.order, making.dim].append(name)
            if making.padding:
                pads[making.padding, making.fill, making.dim].append(name)
        for (order, dim), names in orders.items():
            self._in_place(names, lambda k, o=order, d=dim: PermuteRows(k, o, dim=d))  # type: ignore[misc]
        for (count, value, dim), names in pads.items():
            self._in_place(names, lambda k, c=count, v=value, d=dim: Pad(k, c, value=v, dim=d))  # type: ignore[misc]

    def rename(self) -> None:
        """Give everything its new name."""
        wanted = [
            Names((now,), (making.target,))
            for making in self._makings
            if (now := self._now[self._pieces[making.target, 0]]) != making.target
        ]
        wanted += [
            Names((now,), (key,)) for key in self._match.kept if (now := self._now[key]) != key
        ]
        self._emit(wanted, _renaming)

    def put_in(self) -> None:
        """Put in what nothing old makes: what is there already under another name, and numbers."""
        for key, other in self._match.copies.items():
            is_tie = identity(self._new[key]) == identity(self._new[other])
            self._apply(Tie(key, other) if is_tie else Add(key, copy_of=other))
        for key in self._match.added:
            tensor = self._new[key]
            number = tensor.reshape(-1)[:1].tolist() or [0]
            dtype = str(tensor.dtype).removeprefix("torch.")
            self._apply(Add(key, number[0], shape=tuple(tensor.shape), dtype=dtype))

    def _free(self, name: str) -> str:
        while name in self._state or name in self._now or name in self._new:
            name += "_"
        return name

    def _in_place(self, keys: Iterable[str], build: InPlace) -> None:
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
            self._apply(build(tuple(templates)))

    def _keys_like(self, names: Names) -> Sequence[Any]:
        return Permute((names.sources[0],), (0,)).moves(self._state)

    def _emit(self, moves: Iterable[Names], build: Build) -> None:
        """Apply operations that make moves; where they would be in each other's way, all renames at once."""
        left = dict.fromkeys(moves)
        while left:
            for first in list(left):
                template, _ = best_template(first, left, self._moves_of(build))
                operation = build(template)
                made = [Names(m.sources, m.targets) for m in operation.moves(self._state)]
                try:
                    self._apply(operation)
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
            blocked = [pair for pair in pairs if pair[1] in self._state and pair[1] not in olds]
            if not blocked:
                break
            self.blocked += blocked
            pairs = [pair for pair in pairs if pair not in blocked]
        if pairs:
            self._apply(Rename(tuple(pairs)))

    def _moves_of(self, build: Build) -> Callable[[Names], Sequence[Any]]:
        return lambda names: build(names).moves(self._state)

    def _apply(self, operation: StateDictOperation) -> None:
        moves = operation.moves(self._state)
        operation(self._state)
        renamed = {
            m.sources[0]: m.targets[0] for m in moves if len(m.sources) == len(m.targets) == 1
        }
        touched = {key for move in moves for key in move.sources}
        likely = [key for key, now in self._now.items() if now in touched and key in self._likely]
        self._now = {key: renamed.get(now, now) for key, now in self._now.items()}
        self.drafted.append(Drafted(operation, len(moves), tuple(likely)))


def _permuting(dims: tuple[int, ...]) -> InPlace:
    if dims == (1, 0):
        return Transpose
    return lambda keys: Permute(keys, dims)


def _renaming(names: Names) -> StateDictOperation:
    return Rename(((names.sources[0], names.targets[0]),))


@dataclass(frozen=True)
class _Splitting:
    sizes: tuple[int, ...] | None
    dim: int

    def __call__(self, names: Names) -> StateDictOperation:
        return Split(names.sources[0], names.targets, sizes=self.sizes, dim=self.dim)


@dataclass(frozen=True)
class _Joining:
    dim: int

    def __call__(self, names: Names) -> StateDictOperation:
        return Concat(names.sources, names.targets[0], dim=self.dim)


@dataclass(frozen=True)
class _Stacking:
    dim: int

    def __call__(self, names: Names) -> StateDictOperation:
        template = template_over(names.sources)
        if template is None:
            raise ValueError("the parts are not counted")
        return Stack(template, names.targets[0], over="n", dim=self.dim)


@dataclass(frozen=True)
class _Unstacking:
    template: str
    dim: int

    def __call__(self, names: Names) -> StateDictOperation:
        template = template_over(names.targets)
        if template is None:
            raise ValueError("the parts are not counted")
        return Unstack(names.sources[0], template, over="n", dim=self.dim)

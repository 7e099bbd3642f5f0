"""Writes what was found of two state dicts as operations, each tried out on the form of the old one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from migrate_ckpt.drafting.braces import set_aside_braces
from migrate_ckpt.drafting.builds import (
    Joining,
    Splitting,
    Stacking,
    Unstacking,
    permuting,
    renaming,
)
from migrate_ckpt.drafting.makings import Making, Part
from migrate_ckpt.drafting.matching import Match
from migrate_ckpt.drafting.numbering import find_renumberings
from migrate_ckpt.drafting.prefixes import find_prefixes
from migrate_ckpt.drafting.templates import Names, template_over
from migrate_ckpt.drafting.trial import Build, Drafted, Trial
from migrate_ckpt.operations.contents import Add, Drop
from migrate_ckpt.operations.moves import identity
from migrate_ckpt.operations.reshaping import Cast
from migrate_ckpt.operations.state_dict_operation import StateDictOperation
from migrate_ckpt.operations.transforming import (
    Pad,
    PermuteRows,
    ReshapeTo,
    Trim,
)
from migrate_ckpt.operations.tying import Tie


class Composed(NamedTuple):
    """What came of a match.

    Attributes:
        drafted: The operations.
        undecided: Groups of old keys, by their names after the operations, and new ones, to be decided by a person.
        keys: The keys that the operations leave, in their order.
    """

    drafted: list[Drafted]
    undecided: list[tuple[tuple[str, ...], tuple[str, ...]]]
    keys: list[str]

    @property
    def state_dict_operations(self) -> list[StateDictOperation]:
        return [d.operation for d in self.drafted if isinstance(d.operation, StateDictOperation)]


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
    undecided = [(tuple(composer.trial.names(olds)), tuple(news)) for olds, news in match.undecided]
    undecided += [((old,), (new,)) for old, new in composer.trial.blocked]
    undecided += [(tuple(composer.trial.names(olds)), news) for olds, news in left]
    return Composed(_doubted_once(composer.trial.drafted), undecided, list(composer.trial.state))


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
        likely = {s for m in self._makings if m.certainty == "likely" for s in m.sources}
        self.trial = Trial(old, new, likely)
        self._pieces: dict[tuple[str, int], str] = {}
        """What the parts of new tensors are called by now, by target and number."""

    def drop(self, keys: Iterable[str]) -> None:
        self.trial.in_place(keys, Drop)

    def move_modules(self) -> None:
        """Take prefixes off or put them on, and give layers other numbers, for all keys at once."""
        for operation in find_prefixes(self._pairs(), self.trial.state):
            self.trial.apply(operation)
        for operation in find_renumberings(self._pairs(), self.trial.state):
            self.trial.apply(operation)

    def _pairs(self) -> list[tuple[str, str]]:
        pairs = [(self.trial.name_of(key), key) for key in self._match.kept]
        return pairs + [(self.trial.name_of(s), m.target) for m in self._makings for s in m.sources]

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
            self.trial.in_place(self.trial.names(sources), permuting(dims))
        for dtype, sources in by_dtype.items():
            self._cast(dtype, self.trial.names(sources))
        for shape, sources in by_shape.items():
            self.trial.in_place(self.trial.names(sources), partial(ReshapeTo, shape=shape))

    def _cast(self, dtype: str, keys: list[str]) -> None:
        everything = Cast(dtype)
        cast = {move.sources[0] for move in everything.moves(self.trial.state)}
        open_cases = set(self.trial.names(key for olds, _ in self._match.undecided for key in olds))
        if set(keys) <= cast and cast - set(keys) <= open_cases:
            self.trial.apply(everything)
            return
        floating = [key for key in keys if self.trial.state[key].is_floating_point()]
        others = [key for key in keys if not self.trial.state[key].is_floating_point()]
        self.trial.in_place(floating, lambda templates: Cast(dtype, keys=templates))
        self.trial.in_place(others, lambda templates: Cast(dtype, keys=templates, integers=True))

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
            self.trial.in_place(names, partial(Trim, count=count, start=start, dim=dim))
        for build, moves in wanted.items():
            self.trial.emit(moves, build)
        self.drop(unused)

    def _cut_one(
        self,
        source: str,
        parts: list[tuple[Part, Making, int]],
        wanted: dict[Any, list[Names]],
        unused: list[str],
        trimmed: dict[tuple[int, int, int], list[str]],
    ) -> None:
        name, making = self.trial.name_of(source), parts[0][1]
        if making.kind == "taken":
            self._unstack(source, [m.target for _, m, _ in parts], making.dim, wanted)
            return
        if parts[0][0].rows:
            parts = self._with_rows_in_order(name, parts, making.dim)
        parts.sort(key=lambda each: each[0].start or 0)
        length = self.trial.state[name].shape[making.dim]
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
                names.append(self.trial.free_name(f"{name}.unused{len(names)}"))
                sizes.append(part.start - end)
                unused.append(names[-1])
            if part.stop > part.start:
                names.append(self._name_of_part(name, len(names), each))
                sizes.append(part.stop - part.start)
                self._pieces[each.target, number] = self.trial.new_piece(names[-1])
            end = part.stop
        is_equal = len(set(sizes)) == 1
        build = Splitting(None if is_equal else tuple(sizes), making.dim)
        wanted[build].append(Names((name,), tuple(names)))

    def _with_rows_in_order(
        self, name: str, parts: list[tuple[Part, Making, int]], dim: int
    ) -> list[tuple[Part, Making, int]]:
        order = tuple(row for part, _, _ in parts for row in part.rows)
        length = self.trial.state[name].shape[dim]
        rest = tuple(sorted(set(range(length)) - set(order)))
        self.trial.in_place([name], partial(PermuteRows, order=order + rest, dim=dim))
        ordered, end = [], 0
        for part, making, number in parts:
            stop = end + len(part.rows)
            ordered.append((Part(part.source, start=end, stop=stop), making, number))
            end = stop
        return ordered

    def _unstack(
        self, source: str, targets: list[str], dim: int, wanted: dict[Any, list[Names]]
    ) -> None:
        name = self.trial.name_of(source)
        template = template_over(targets)
        if template is None or any(target in self.trial.state for target in targets):
            template = self.trial.free_name(name + ".rows") + ".{n}"
        made = [template.replace("{n}", str(n)) for n in range(len(targets))]
        for target, piece in zip(targets, made, strict=True):
            self._pieces[target, 0] = self.trial.new_piece(piece)
        wanted[Unstacking(template, dim)].append(Names((name,), tuple(made)))

    def _name_of_part(self, name: str, number: int, making: Making) -> str:
        """Return the name of a part: that of the new tensor, if it is all of it and the name is free."""
        is_all = len(making.parts) == 1 and not making.order and not making.padding
        is_free = making.target not in self.trial.state
        return making.target if is_all and is_free else self.trial.free_name(f"{name}.part{number}")

    def join(self) -> None:
        """Join, stack, order and pad what the new tensors are made of."""
        wanted: dict[Any, list[Names]] = defaultdict(list)
        for making in self._makings:
            if len(making.parts) < 2 and making.kind != "stacked":
                continue
            names = tuple(
                self.trial.name_of(self._pieces[making.target, n]) for n in range(len(making.parts))
            )
            target = making.target
            if target in self.trial.state and target not in names:
                target = self.trial.free_name(f"{target}.whole")
            build: Build
            if making.kind == "stacked":
                build = Stacking(making.dim)
                if not self.trial.makes_alone(build, Names(names, (target,))):
                    numbered = [
                        self.trial.free_name(f"{making.target}.{n}") for n in range(len(names))
                    ]
                    self.trial.emit(
                        [Names((a,), (b,)) for a, b in zip(names, numbered, strict=True)], renaming
                    )
                    names = tuple(numbered)
            else:
                build = Joining(making.dim)
            wanted[build].append(Names(names, (target,)))
            self._pieces[making.target, 0] = self.trial.new_piece(target)
        for build, moves in wanted.items():
            self.trial.emit(moves, build)
        self._order_and_pad()

    def _order_and_pad(self) -> None:
        orders: dict[tuple[tuple[int, ...], int], list[str]] = defaultdict(list)
        pads: dict[tuple[int, float, int], list[str]] = defaultdict(list)
        for making in self._makings:
            name = self.trial.name_of(self._pieces[making.target, 0])
            if making.order:
                orders[making.order, making.dim].append(name)
            if making.padding:
                pads[making.padding, making.fill, making.dim].append(name)
        for (order, dim), names in orders.items():
            self.trial.in_place(names, partial(PermuteRows, order=order, dim=dim))
        for (count, value, dim), names in pads.items():
            self.trial.in_place(names, partial(Pad, count=count, value=value, dim=dim))

    def rename(self) -> None:
        """Give everything its new name."""
        wanted = [
            Names((now,), (making.target,))
            for making in self._makings
            if (now := self.trial.name_of(self._pieces[making.target, 0])) != making.target
        ]
        wanted += [
            Names((now,), (key,))
            for key in self._match.kept
            if (now := self.trial.name_of(key)) != key
        ]
        self.trial.emit(wanted, renaming)

    def put_in(self) -> None:
        """Put in what nothing old makes: what is there already under another name, and numbers."""
        for key, other in self._match.copies.items():
            is_tie = identity(self._new[key]) == identity(self._new[other])
            self.trial.apply(Tie(key, other) if is_tie else Add(key, copy_of=other))
        for key in self._match.added:
            tensor = self._new[key]
            number = tensor.reshape(-1)[:1].tolist() or [0]
            dtype = str(tensor.dtype).removeprefix("torch.")
            self.trial.apply(Add(key, number[0], shape=tuple(tensor.shape), dtype=dtype))

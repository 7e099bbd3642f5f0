"""Finds the rows of new tensors among the rows of old ones, along any dimension and in any order of dimensions."""

from __future__ import annotations

import itertools
from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from migrate_ckpt.content_hashes import hash_slices, hash_whole, is_constant
from migrate_ckpt.drafting.makings import Making, Part, View

if TYPE_CHECKING:
    import torch

MAX_DIMS = 4
MAX_ROWS = 1 << 20
MAX_EQUAL_ROWS = 32
MAX_RUNS_OF_ONE = 2
"""Of more runs of one tensor than these it is a matter of the order of rows, not of parts."""

Tensors: TypeAlias = "Mapping[str, torch.Tensor]"
_KeysByHash: TypeAlias = dict[int, list[str]]
Form: TypeAlias = tuple[str, tuple[int, ...], int]
"""What rows have in common: the dtype, the shape of a row, and the dimension that counts them."""


@dataclass(frozen=True, slots=True)
class Run:
    """Rows that follow each other in an old tensor and in a new one."""

    source: str
    view: View
    start: int
    stop: int
    is_stacked: bool


@dataclass(frozen=True, slots=True)
class Found:
    """The runs that a new tensor consists of along a dimension, and how many rows of one number come then."""

    target: str
    dim: int
    runs: tuple[Run, ...]
    padding: int = 0
    fill: float = 0.0


def find_in_rows(old: Tensors, new: Tensors) -> list[Making]:
    """Return how new tensors are made of rows of old ones, where all rows of them are found and none is used twice."""
    best: dict[str, Found] = {}
    for form, keys in _forms(new).items():
        rows = _Rows(old, form)
        for key in keys if rows.count else ():
            found = rows.find(key, new[key])
            if found is not None and (key not in best or _cost(found) < _cost(best[key])):
                best[key] = found
    chosen = _without_conflicts(sorted(best.values(), key=_cost), old)
    makings = list(_as_makings(chosen, old))
    used = {source for making in makings for source in making.sources}
    made = {making.target for making in makings}
    return makings + _find_unstacked(
        {key: tensor for key, tensor in old.items() if key not in used},
        {key: tensor for key, tensor in new.items() if key not in made},
    )


def _forms(new: Tensors) -> dict[Form, list[str]]:
    forms: dict[Form, list[str]] = defaultdict(list)
    for key, tensor in new.items():
        for dim in range(tensor.dim() if tensor.dim() <= MAX_DIMS else 0):
            if tensor.shape[dim] <= MAX_ROWS:
                forms[_name(tensor), _without(tensor.shape, dim), dim].append(key)
    return forms


class _Rows:
    """All rows of old tensors that have one form, by their hashes."""

    def __init__(self, old: Tensors, form: Form) -> None:
        import torch

        self._entries: list[tuple[str, View, bool]] = []
        self._owners, self._numbers, hashes = array("q"), array("q"), array("q")
        for key, view, is_stacked in _views(old, form):
            tensor = view.of(old[key])
            rows = [hash_whole(tensor)] if is_stacked else hash_slices(tensor, form[2])
            self._owners.extend([len(self._entries)] * len(rows))
            self._numbers.extend(range(len(rows)))
            hashes.extend(rows)
            self._entries.append((key, view, is_stacked))
        self._hashes, self._dim = hashes, form[2]
        self.count = len(hashes)
        if self.count:
            # A buffer that torch shares cannot grow any more, and need not.
            values = torch.frombuffer(hashes, dtype=torch.int64)
            self._sorted, self._order = values.sort()

    def find(self, key: str, tensor: torch.Tensor) -> Found | None:
        import torch

        wanted = hash_slices(tensor, self._dim)
        values = torch.tensor(wanted, dtype=torch.int64)
        lows = torch.searchsorted(self._sorted, values).tolist()
        highs = torch.searchsorted(self._sorted, values, right=True).tolist()
        runs: list[Run] = []
        at = 0
        while at < len(wanted):
            places = self._order[lows[at] : min(highs[at], lows[at] + MAX_EQUAL_ROWS)].tolist()
            place, length = self._longest(wanted, at, places)
            block = tensor.narrow(self._dim, at, max(length, 1))
            if length == 0 or is_constant(block):
                rest = tensor.narrow(self._dim, at, len(wanted) - at)
                if not runs or not is_constant(rest) or tensor.dtype.is_complex:
                    return None
                fill = rest.reshape(-1)[0].item()
                return Found(key, self._dim, tuple(runs), len(wanted) - at, fill)
            source, view, is_stacked = self._entries[self._owners[place]]
            first = self._numbers[place]
            runs.append(Run(source, view, first, first + length, is_stacked))
            at += length
        return Found(key, self._dim, tuple(runs))

    def _longest(self, wanted: Sequence[int], at: int, places: Sequence[int]) -> tuple[int, int]:
        """Return the place from which on most rows are as wanted, and how many; none where two are as good."""
        best, most, is_only_one = 0, 0, True
        for place in places:
            length, owner = 1, self._owners[place]
            while (
                at + length < len(wanted)
                and place + length < self.count
                and self._owners[place + length] == owner
                and self._hashes[place + length] == wanted[at + length]
            ):
                length += 1
            if length >= most:
                best, most, is_only_one = place, length, length > most
        return best, most if is_only_one else 0


def _views(old: Tensors, form: Form) -> Iterator[tuple[str, View, bool]]:
    """Yield the ways to look at old tensors in which their rows, or they as one row, have a form."""
    dtype, row_shape, dim = form
    for key, tensor in old.items():
        cast = None if _name(tensor) == dtype else dtype
        is_stacked = tensor.dim() == len(row_shape)
        if not is_stacked and tensor.dim() != len(row_shape) + 1:
            continue
        for dims in itertools.permutations(range(tensor.dim())):
            shape = tuple(tensor.shape[d] for d in dims)
            if (shape if is_stacked else _without(shape, dim)) == row_shape and (
                is_stacked or shape[dim] <= MAX_ROWS
            ):
                yield key, View(None if dims == tuple(range(len(dims))) else dims, cast), is_stacked


def _cost(found: Found) -> tuple[int, int, int]:
    changes = sum((r.view.dims is not None) + (r.view.dtype is not None) for r in found.runs)
    return len(found.runs), found.padding, changes


def _without_conflicts(found: Sequence[Found], old: Tensors) -> list[Found]:
    """Leave out what uses rows that another does, or looks at a tensor in another way."""
    chosen = []
    ways: dict[str, tuple[View, int, bool]] = {}
    used: dict[str, set[int]] = defaultdict(set)
    for each in found:
        rows = [(r.source, row) for r in each.runs for row in range(r.start, r.stop)]
        own_ways = {(r.source, (r.view, each.dim, r.is_stacked)) for r in each.runs}
        is_free = (
            len(set(rows)) == len(rows)
            and not any(row in used[source] for source, row in rows)
            and len({source for source, _ in own_ways}) == len(own_ways)
            and all(ways.get(source, way) == way for source, way in own_ways)
            and len({r.is_stacked for r in each.runs}) == 1
        )
        if is_free:
            chosen.append(each)
            ways.update(own_ways)
            for source, row in rows:
                used[source].add(row)
    return chosen


def _as_makings(chosen: Sequence[Found], old: Tensors) -> Iterator[Making]:
    users: dict[str, list[Found]] = defaultdict(list)
    for found in chosen:
        for source in dict.fromkeys(run.source for run in found.runs):
            users[source].append(found)
    for found in chosen:
        making = _as_making(found, users, old)
        if making is not None:
            yield making


def _as_making(found: Found, users: Mapping[str, Sequence[Found]], old: Tensors) -> Making | None:
    runs, dim = found.runs, found.dim
    made = Making(found.target, (), dim, padding=found.padding, fill=found.fill)
    if runs[0].is_stacked:
        parts = tuple(Part(run.source, run.view) for run in runs)
        return None if found.padding else replace(made, parts=parts, kind="stacked")
    views = {run.source: run.view for run in runs}
    lengths = {source: _rows_of(old[source], view, dim) for source, view in views.items()}
    if len(runs) <= MAX_RUNS_OF_ONE * len(views):
        parts = tuple(
            Part(run.source, run.view)
            if (run.start, run.stop) == (0, lengths[run.source])
            else Part(run.source, run.view, run.start, run.stop)
            for run in runs
        )
        return replace(made, parts=parts)
    rows = [(run.source, row) for run in runs for row in range(run.start, run.stop)]
    sources = list(dict.fromkeys(source for source, _ in rows))
    if sum(lengths.values()) == len(rows) and all(len(users[source]) == 1 for source in sources):
        ends = itertools.accumulate(lengths[source] for source in sources)
        starts = {s: end - lengths[s] for s, end in zip(sources, ends, strict=True)}
        order = tuple(starts[source] + row for source, row in rows)
        return replace(made, parts=tuple(Part(s, views[s]) for s in sources), order=order)
    if len(sources) == 1:
        only = Part(sources[0], views[sources[0]], rows=tuple(row for _, row in rows))
        return replace(made, parts=(only,))
    return None


def _rows_of(tensor: torch.Tensor, view: View, dim: int) -> int:
    return tensor.shape[dim if view.dims is None else view.dims[dim]]


def _find_unstacked(old: Tensors, new: Tensors) -> list[Making]:
    """Find old tensors whose rows along a dimension are new tensors each."""
    by_form: dict[tuple[str, tuple[int, ...]], _KeysByHash] = {}
    for key, tensor in new.items():
        hashes = by_form.setdefault((_name(tensor), tuple(tensor.shape)), {})
        hashes.setdefault(hash_whole(tensor), []).append(key)
    makings: list[Making] = []
    for key, tensor in old.items():
        found = next(_as_rows(key, tensor, by_form), [])
        makings += found
        made = {making.target for making in found}
        by_form = {
            form: {row: keys for row, keys in known.items() if keys[0] not in made}
            for form, known in by_form.items()
        }
    return makings


def _as_rows(
    key: str, tensor: torch.Tensor, by_form: Mapping[tuple[str, tuple[int, ...]], _KeysByHash]
) -> Iterator[list[Making]]:
    """Yield the ways to take a tensor apart so that each row is a new tensor, and one alone."""
    for (dtype, shape), keys_of in by_form.items():
        for dims, dim in _ways_to_rows(tensor, shape):
            view = View(dims, None if _name(tensor) == dtype else dtype)
            rows = hash_slices(view.of(tensor), dim)
            names = [keys_of[row][0] for row in rows if len(keys_of.get(row, ())) == 1]
            if rows and len(set(names)) == len(rows):
                yield [
                    Making(name, (Part(key, view, n, n + 1),), dim, "taken")
                    for n, name in enumerate(names)
                ]


def _ways_to_rows(
    tensor: torch.Tensor, shape: tuple[int, ...]
) -> Iterator[tuple[tuple[int, ...] | None, int]]:
    """Yield the orders of dimensions, and the one of them that counts rows, in which each row has a shape."""
    if tensor.dim() != len(shape) + 1 or tensor.dim() > MAX_DIMS:
        return
    for dim in range(tensor.dim()):
        if _without(tensor.shape, dim) == shape and tensor.shape[dim] <= MAX_ROWS:
            yield None, dim
    for dims in itertools.permutations(range(tensor.dim())):
        is_ordered = list(dims[1:]) == sorted(dims[1:])
        if not is_ordered and tuple(tensor.shape[dim] for dim in dims[1:]) == shape:
            yield dims, 0


def _name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _without(shape: Sequence[int], dim: int) -> tuple[int, ...]:
    return (*shape[:dim], *shape[dim + 1 :])

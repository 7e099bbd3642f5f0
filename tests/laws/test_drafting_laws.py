"""Laws of migrations written by comparing: what was done is found again, and nothing is paired wrongly."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from migrate_ckpt.drafting.composing import compose
from migrate_ckpt.drafting.labels import is_dense, label_of
from migrate_ckpt.drafting.matching import match_tensors
from migrate_ckpt.drafting.others import pair_others
from migrate_ckpt.drafting.proof import find_differing
from migrate_ckpt.errors import OperationError
from migrate_ckpt.operations import (
    Operation,
    add,
    add_prefix,
    cast,
    concat,
    drop,
    pad_rows,
    permute,
    permute_rows,
    rename,
    reshape,
    split,
    stack,
    strip_prefix,
    tie,
    transpose,
    trim_rows,
    unstack,
)

StateDict = dict[str, Any]

MODULES = ["enc.layers.0", "enc.layers.1", "enc.layers.2", "dec", "dec.net.fc", "head"]
LEAVES = ["weight", "kernel", "w", "proj"]
SHAPES = [(4, 6), (6, 4), (6, 6), (12,), (4, 6, 2), (8, 4)]


class Composition:
    """Operations on random keys, each of a kind that one tensor meets no more often than can be found again."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.state: StateDict = {}
        self.cut: set[str] = set()
        self.fixed: set[str] = set()
        generator = torch.Generator().manual_seed(seed)
        for module in self.random.sample(MODULES, 4):
            for leaf in self.random.sample(LEAVES, 2):
                shape = self.random.choice(SHAPES)
                self.state[f"{module}.{leaf}"] = torch.randn(shape, generator=generator)
        self.old = {key: tensor.clone() for key, tensor in self.state.items()}

    def apply(self, operation: Operation, *, cut: Any = (), fixed: Any = ()) -> None:
        try:
            state = operation(dict(self.state))
        except OperationError:
            return
        self.state = dict(state)
        self.cut |= set(cut)
        self.fixed |= set(fixed)

    def key(self, *, uncut: bool = False) -> str | None:
        keys = [key for key in self.state if key not in self.fixed]
        keys = [key for key in keys if key not in self.cut] if uncut else keys
        return self.random.choice(keys) if keys else None

    def is_as_it_was(self, key: str) -> bool:
        """Tell whether nothing has happened to a tensor but to its name."""
        tensor = self.state[key]
        return any(t.shape == tensor.shape and torch.equal(t, tensor) for t in self.old.values())

    def name(self) -> str:
        return f"{self.random.choice(MODULES)}.new{self.random.randrange(1000)}.weight"

    def dim(self, key: str) -> int:
        return self.random.randrange(self.state[key].dim())


def _rename(c: Composition) -> None:
    if key := c.key():
        new = c.name()
        c.apply(rename(key, new))
        for marks in (c.cut, c.fixed):
            if key in marks:
                marks.add(new)


def _rename_module(c: Composition) -> None:
    if not c.cut and not c.fixed:
        name = c.random.choice(MODULES)
        c.apply(rename(f"{name}.{{leaf}}", f"{name.replace('e', 'o')}.sub.{{leaf}}"))


def _prefix(c: Composition) -> None:
    if not c.cut and not c.fixed:
        c.apply(add_prefix("model"))


def _strip(c: Composition) -> None:
    if not c.cut and not c.fixed:
        c.apply(strip_prefix("model", "dec"))


def _split(c: Composition) -> None:
    if key := c.key(uncut=True):
        dim = c.dim(key)
        size = c.state[key].shape[dim]
        at = c.random.randrange(1, size)
        names = [c.name(), c.name()]
        c.apply(split(key, names, sizes=[at, size - at], dim=dim), cut=names, fixed=names)


def _concat(c: Composition) -> None:
    keys = [key for key in c.state if key not in c.cut | c.fixed]
    if len(keys) > 2:
        sources, name = c.random.sample(keys, 2), c.name()
        c.apply(concat(sources, name, dim=c.dim(sources[0])), cut=[name], fixed=[name])


def _stack(c: Composition) -> None:
    by_shape: dict[Any, list[str]] = {}
    for key in c.state:
        if key not in c.cut | c.fixed:
            by_shape.setdefault((c.state[key].shape, c.state[key].dtype), []).append(key)
    groups = [keys for keys in by_shape.values() if len(keys) > 1]
    if groups:
        keys, name = c.random.choice(groups)[:3], c.name()
        c.apply(rename({key: f"{name}.{n}" for n, key in enumerate(keys)}))
        c.apply(stack(f"{name}.{{n}}", name, over="n"), cut=[name], fixed=[name])


def _unstack(c: Composition) -> None:
    if (key := c.key(uncut=True)) and c.state[key].dim() > 1:
        name, count = c.name(), c.state[key].shape[0]
        parts = [f"{name}.{n}" for n in range(count)]
        c.apply(unstack(key, f"{name}.{{n}}", over="n"), cut=parts, fixed=parts)


def _transpose(c: Composition) -> None:
    if key := c.key(uncut=True):
        c.apply(transpose(key))


def _permute(c: Composition) -> None:
    if key := c.key(uncut=True):
        dims = list(range(c.state[key].dim()))
        c.random.shuffle(dims)
        c.apply(permute(key, dims))


def _cast(c: Composition) -> None:
    if all(tensor.dtype == torch.float32 for tensor in c.state.values()):
        c.apply(cast(c.random.choice(["bfloat16", "float64"])))


def _reshape(c: Composition) -> None:
    if (key := c.key(uncut=True)) and c.is_as_it_was(key):
        c.apply(reshape(key, [2, -1, 2]), cut=[key], fixed=[key])


def _drop(c: Composition) -> None:
    if len(c.state) > 3 and (key := c.key()):
        c.apply(drop(key))


def _rows(c: Composition) -> None:
    if (key := c.key(uncut=True)) and c.state[key].dim() > 1:
        dim = c.dim(key)
        order = list(range(c.state[key].shape[dim]))
        c.random.shuffle(order)
        c.apply(permute_rows(key, order, dim=dim), cut=[key], fixed=[key])


def _trim(c: Composition) -> None:
    if (key := c.key(uncut=True)) and c.state[key].dim() > 1:
        dim = c.dim(key)
        count = c.state[key].shape[dim] - 1
        start = c.random.randrange(2)
        c.apply(trim_rows(key, count, start=start, dim=dim), cut=[key], fixed=[key])


def _pad(c: Composition) -> None:
    if key := c.key(uncut=True):
        c.apply(pad_rows(key, 3, dim=c.dim(key), value=0.5), cut=[key], fixed=[key])


def _copy(c: Composition) -> None:
    if key := c.key():
        name = c.name()
        made = c.random.choice([tie(name, key), add(name, copy_of=key)])
        c.apply(made, cut=[name, key], fixed=[name, key])


def _add(c: Composition) -> None:
    name = c.name()
    c.apply(add(name, 1.5, shape=[c.random.randrange(20, 30)]), cut=[name], fixed=[name])


STEPS: list[Callable[[Composition], None]] = [
    _rename,
    _rename_module,
    _prefix,
    _strip,
    _split,
    _concat,
    _stack,
    _unstack,
    _transpose,
    _permute,
    _cast,
    _reshape,
    _drop,
    _rows,
    _trim,
    _pad,
    _copy,
    _add,
]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), steps=st.lists(st.sampled_from(STEPS), min_size=1, max_size=8))
def test_what_was_done_to_telling_tensors_is_found_again(
    seed: int, steps: list[Callable[[Composition], None]]
) -> None:
    composition = Composition(seed)
    for step in steps:
        step(composition)
    old, new = composition.old, composition.state

    match = match_tensors(old, new)
    drafted, undecided, _ = compose(match, old, new)

    assert find_differing([d.operation for d in drafted], old, new) == []
    assert (undecided, match.unknown, match.changed) == ([], [], [])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    steps=st.lists(st.sampled_from(STEPS), min_size=1, max_size=4),
    others=st.lists(st.tuples(st.sampled_from(MODULES), st.booleans()), min_size=1, max_size=4),
)
def test_other_values_stay_or_move_whatever_the_tensors_do(
    seed: int, steps: list[Callable[[Composition], None]], others: list[tuple[str, bool]]
) -> None:
    composition = Composition(seed)
    for step in steps:
        step(composition)
    old, new = composition.old, composition.state
    for number, (module, moves) in enumerate(others):
        value = b"%d" % number
        old[f"{module}.{number}._extra_state"] = value
        new[f"{'moved.' if moves else ''}{module}.{number}._extra_state"] = value

    match = match_tensors(*({k: v for k, v in s.items() if is_dense(v)} for s in (old, new)))
    labels = ({k: label_of(v) for k, v in s.items() if not is_dense(v)} for s in (old, new))
    unknown = pair_others(match, *labels)
    drafted, undecided, _ = compose(match, old, new)

    assert find_differing([d.operation for d in drafted], old, new) == []
    assert (undecided, match.unknown, match.changed, unknown) == ([], [], [], [])


NAMES = [
    "alpha",
    "beta",
    "gamma",
    "delta",
    "eps",
    "zeta",
    "eta",
    "theta",
    "iota",
    "kappa",
    "lam",
    "mu",
    "nu",
    "xi",
]


@functools.cache
def fresh_transformer() -> StateDict:
    torch.manual_seed(0)
    return dict(nn.Transformer(32, 4, 3, 3, 48, batch_first=True).state_dict())


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_no_tensor_of_a_fresh_transformer_is_paired_wrongly(
    seed: int,
) -> None:
    old = fresh_transformer()
    new_names = _renaming(old, random.Random(seed))
    new = {new_names[key]: tensor.clone() for key, tensor in old.items()}

    match = match_tensors(old, new)

    paired = {making.sources[0]: target for target, making in match.makings.items()}
    paired |= {key: key for key in match.kept}
    assert {key: new_names[key] for key in paired} == paired
    telling = [key for key in old if old[key].dim() > 1]
    assert set(telling) <= set(paired)
    assert (match.dropped, match.added, match.unknown, match.changed) == ([], [], [], [])


def _renaming(state_dict: StateDict, choices: random.Random) -> dict[str, str]:
    """New names for modules at any depth, each in one way wherever it stands; layers in any order."""
    parts = {part for key in state_dict for part in key.split(".")[:-1] if not part.isdecimal()}
    renamed = choices.sample(sorted(parts), choices.randrange(len(parts) + 1))
    words = dict(zip(renamed, choices.sample(NAMES, len(renamed)), strict=True))
    layers = ["0", "1", "2"]
    words |= (
        dict(zip(layers, choices.sample(layers, 3), strict=True)) if choices.random() < 0.5 else {}
    )
    return {key: ".".join(words.get(part, part) for part in key.split(".")) for key in state_dict}


def test_what_one_of_two_alike_became_is_left_to_a_person() -> None:
    old = {"a.weight": torch.ones(3), "b.weight": torch.ones(3), "c.weight": torch.randn(3)}
    new = {"x.weight": torch.ones(3), "y.weight": torch.ones(3), "z.weight": old["c.weight"]}

    match = match_tensors(old, new)

    assert set(match.makings) == {"z.weight"}
    assert match.undecided == [(("a.weight", "b.weight"), ("x.weight", "y.weight"))]

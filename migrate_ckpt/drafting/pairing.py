"""Pairs names whose tensors do not tell which is which, by where they stand among those that are known.

Nothing is paired that could be paired otherwise: a name is taken only where one place alone fits it.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

Names: TypeAlias = tuple[str, ...]
"""The components of a key."""
Labels: TypeAlias = Mapping[str, Hashable]
"""For each key that is left what another one must share with it to be its pair: shape, dtype, content."""


def pair_names(
    old: Labels, new: Labels, known: Iterable[tuple[str, str]], *, counts_layers: bool
) -> dict[str, str]:
    """Return for new keys the old ones that they were, as far as their places say it.

    Args:
        old: The old keys that are left.
        new: The new keys that are left.
        known: Pairs of old and new keys that are sure, those that were not renamed included.
        counts_layers: Whether numbered modules that look alike may be paired in their order.
    """
    pairing = _Pairing(old, new, known, counts_layers=counts_layers)
    while pairing.take_step():
        pass
    return pairing.pairs


class _Pairing:
    def __init__(
        self,
        old: Labels,
        new: Labels,
        known: Iterable[tuple[str, str]],
        *,
        counts_layers: bool,
    ) -> None:
        self._old = {tuple(key.split(".")): label for key, label in old.items()}
        self._new = {tuple(key.split(".")): label for key, label in new.items()}
        self._known = [(tuple(a.split(".")), tuple(b.split("."))) for a, b in known]
        self._counts_layers = counts_layers
        self._assumed: dict[Names, Names] = {}
        """Modules that are each other's if any are, because there is no other."""
        if not self._known:
            self._assume(tuple(_around(self._old)), tuple(_around(self._new)))
        self.pairs: dict[str, str] = {}

    def take_step(self) -> bool:
        """Pair what the modules that are known by now tell; False where they tell nothing more."""
        modules = self._modules()
        old, new = _by_module(self._old), _by_module(self._new)
        # The innermost modules know best, and what they tell may say more of others.
        depths = sorted({len(module) for module in modules}, reverse=True)
        for find in (_of_one_name, self._children, _of_one_form):
            for depth in depths:
                found = [
                    ((*old_module, *rest), (*new_module, *new_rest))
                    for old_module, new_module in modules.items()
                    if len(old_module) == depth
                    for rest, new_rest in find(old.get(old_module, {}), new.get(new_module, {}))
                ]
                for pair in found:
                    self._pair(*pair)
                if found:
                    return True
        lists = [self._assume_lists(pair, old, new) for pair in modules.items()]
        if any(lists):
            return True
        only = [self._assume_only_child(pair, old, new) for pair in modules.items()]
        return any(only)

    def _modules(self) -> dict[Names, Names]:
        modules = _modules(self._known)
        for old, new in self._assumed.items():
            if old not in modules and new not in modules.values():
                modules[old] = new
        if () not in modules and () not in modules.values():
            modules[()] = ()
        return modules

    def _assume(self, old: Names, new: Names) -> bool:
        if old in self._assumed:
            return False
        self._assumed[old] = new
        return True

    def _assume_lists(
        self,
        pair: tuple[Names, Names],
        old: Mapping[Names, _Below],
        new: Mapping[Names, _Below],
    ) -> bool:
        """Assume of two lists of layers, which alone are as long as each other, that they are one, in their order."""
        if not self._counts_layers:
            return False
        olds, news = (
            _lists(below.get(module, {})) for below, module in zip((old, new), pair, strict=True)
        )
        assumed = False
        for count, names in olds.items():
            others = news.get(count, [])
            if len(names) == len(others) == 1:
                (before, numbers), (after, new_numbers) = names[0], others[0]
                for number, new_number in zip(numbers, new_numbers, strict=True):
                    assumed |= self._assume(
                        (*pair[0], *before, number), (*pair[1], *after, new_number)
                    )
        return assumed

    def _assume_only_child(
        self,
        pair: tuple[Names, Names],
        old: Mapping[Names, _Below],
        new: Mapping[Names, _Below],
    ) -> bool:
        """Assume of the only modules that are left in two that belong together that they do, too."""
        olds, news = (
            {rest[0] for rest in below.get(module, {}) if rest[1:]}
            for below, module in zip((old, new), pair, strict=True)
        )
        if len(olds) == len(news) == 1:
            return self._assume((*pair[0], *olds), (*pair[1], *news))
        return False

    def _pair(self, old: Names, new: Names) -> None:
        del self._old[old], self._new[new]
        self._known.append((old, new))
        self.pairs[".".join(new)] = ".".join(old)

    def _children(self, old: _Below, new: _Below) -> Iterator[tuple[Names, Names]]:
        """Yield the names below children of a module of which one alone on either side is as it is."""
        old_children, new_children = _by_child(old), _by_child(new)
        olds, news = _by_form(old_children), _by_form(new_children)
        for form, names in olds.items():
            others = news.get(form, [])
            alike = len(names) == len(others) and (
                len(names) == 1
                or (self._counts_layers and all(map(str.isdecimal, [*names, *others])))
            )
            if alike:
                pairs = zip(sorted(names, key=_number), sorted(others, key=_number), strict=True)
                yield from _inside(old_children, new_children, pairs)


_Below: TypeAlias = Mapping[Names, Hashable]


def _around(keys: Iterable[Names]) -> list[str]:
    return shared_beginning([key[:-1] for key in keys])


def _modules(known: Iterable[tuple[Names, Names]]) -> dict[Names, Names]:
    """Return the modules that became one other module each, and nothing else did.

    Where names have become more or fewer, the modules around them are not as sure, and give way to those that are.
    """
    one_depth: list[tuple[Names, Names]] = []
    others: list[tuple[Names, Names]] = []
    for old, new in known:
        (one_depth if len(old) == len(new) else others).append((old, new))
    found = _consistent(one_depth)
    news = set(found.values())
    for old, new in _consistent(others).items():
        if old not in found and new not in news:
            found[old] = new
    return found


def _consistent(known: Iterable[tuple[Names, Names]]) -> dict[Names, Names]:
    to_new: dict[Names, set[Names]] = defaultdict(set)
    to_old: dict[Names, set[Names]] = defaultdict(set)
    for old, new in known:
        for depth in range(1, min(len(old), len(new)) + 1):
            to_new[old[:-depth]].add(new[:-depth])
            to_old[new[:-depth]].add(old[:-depth])
    return {
        old: next(iter(news))
        for old, news in to_new.items()
        if len(news) == 1 and len(to_old[next(iter(news))]) == 1
    }


def _by_module(keys: Mapping[Names, Hashable]) -> dict[Names, dict[Names, Hashable]]:
    """Return for each module the keys below it, without its own name."""
    below: dict[Names, dict[Names, Hashable]] = defaultdict(dict)
    for key, label in keys.items():
        for depth in range(len(key)):
            below[key[:depth]][key[depth:]] = label
    return below


def _of_one_name(old: _Below, new: _Below) -> Iterator[tuple[Names, Names]]:
    layers, others = _layers(old), _layers(new)
    for rest, label in old.items():
        # Layers that count from another number on have no names in common, though it may look so.
        is_same_layer = layers == others or rest[0] not in layers
        if is_same_layer and rest in new and new[rest] == label:
            yield rest, rest


def _of_one_form(old: _Below, new: _Below) -> Iterator[tuple[Names, Names]]:
    """Yield the parameters of modules, however deep, of which one alone on either side has such parameters."""
    olds, news = _by_parameters(old), _by_parameters(new)
    for form, modules in olds.items():
        others = news.get(form, [])
        if len(modules) == len(others) == 1 and modules[0] and others[0]:
            for name, _ in form:
                yield (*modules[0], name), (*others[0], name)


def _by_parameters(below: _Below) -> dict[frozenset[tuple[str, Hashable]], list[Names]]:
    own: dict[Names, dict[str, Hashable]] = defaultdict(dict)
    for rest, label in below.items():
        own[rest[:-1]][rest[-1]] = label
    forms: dict[frozenset[tuple[str, Hashable]], list[Names]] = defaultdict(list)
    for module, parameters in own.items():
        forms[frozenset(parameters.items())].append(module)
    return forms


def _lists(below: _Below) -> dict[int, list[tuple[Names, list[str]]]]:
    """Return the outermost lists of layers below a module by their lengths: the path of each, and its numbers."""
    numbers: dict[Names, set[str]] = defaultdict(set)
    for rest in below:
        places = [place for place, name in enumerate(rest) if name.isdecimal()]
        if places:
            numbers[rest[: places[0]]].add(rest[places[0]])
    lists: dict[int, list[tuple[Names, list[str]]]] = defaultdict(list)
    for path, found in numbers.items():
        if len(found) > 1:
            lists[len(found)].append((path, sorted(found, key=_number)))
    return lists


def _layers(below: _Below) -> set[str]:
    return {rest[0] for rest in below if rest[0].isdecimal()}


def _by_child(below: _Below) -> dict[str, dict[Names, Hashable]]:
    children: dict[str, dict[Names, Hashable]] = defaultdict(dict)
    for rest, label in below.items():
        children[rest[0]][rest[1:]] = label
    return children


def _by_form(children: Mapping[str, _Below]) -> dict[Hashable, list[str]]:
    forms: dict[Hashable, list[str]] = defaultdict(list)
    for name, below in children.items():
        forms[frozenset(Counter(below.items()).items())].append(name)
    return forms


def _inside(
    old: Mapping[str, _Below], new: Mapping[str, _Below], pairs: Iterable[tuple[str, str]]
) -> Iterator[tuple[Names, Names]]:
    for name, other in pairs:
        for rest in old[name]:
            yield (name, *rest), (other, *rest)


def _number(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdecimal() else (-1, name)


def shared_beginning(keys: Sequence[Sequence[str]]) -> list[str]:
    """Return the components that all keys begin with."""
    return [names[0] for names in itertools.takewhile(_are_equal, zip(*keys, strict=False))]


def _are_equal(names: Sequence[str]) -> bool:
    return len(set(names)) == 1

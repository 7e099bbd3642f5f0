"""Finds how the tensors of one state dict are made of those of another: by content, and by names where that is alike.

What is looked for: a tensor under another name, with its dimensions permuted, in another dtype or shape; parts of such
tensors, cut and joined along one dimension; tensors that are stacked, or rows of one; rows in another order; rows of
one number after the others.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from migrate_ckpt.drafting.contents import Content, Tensors
from migrate_ckpt.drafting.makings import Certainty, Making, View
from migrate_ckpt.drafting.pairing import pair_names
from migrate_ckpt.drafting.row_runs import find_in_rows
from migrate_ckpt.drafting.siblings import around, connected, module_of, sibling
from migrate_ckpt.operations.tensor_actions import have_equal_bits

if TYPE_CHECKING:
    import torch

MAX_PERMUTED_DIMS = 5


@dataclass
class Match:
    """What is known of two state dicts.

    Attributes:
        kept: The keys that are the same in both.
        makings: How new tensors are made of old ones, by their keys.
        copies: New keys that hold what another new key holds, which is the value.
        dropped: Old keys that nothing new is made of.
        added: New keys of one number that nothing old makes.
        unknown: New keys of which nothing is known.
        undecided: Groups of old and new keys of which nobody can tell which became which.
        changed: Keys of one form with other content, as after more training.
    """

    kept: set[str] = field(default_factory=set)
    makings: dict[str, Making] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    undecided: list[tuple[tuple[str, ...], tuple[str, ...]]] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)

    def known_pairs(self) -> list[tuple[str, str]]:
        """Return pairs of keys whose modules became each other."""
        known = [(key, key) for key in self.kept]
        makings = list(self.makings.values())
        known += [(m.sources[0], m.target) for m in makings if m.is_whole]
        for group in connected(makings):
            sources = list(dict.fromkeys(source for m in group for source in m.sources))
            known += around(sources, [making.target for making in group])
        return known


def match_tensors(old: Tensors, new: Tensors) -> Match:
    """Match two state dicts; of those with tensors on the device `meta` only names, shapes and dtypes are known."""
    matcher = _Matcher(old, new)
    matcher.match_whole()
    matcher.match_views()
    matcher.match_rows()
    matcher.match_names()
    matcher.keep_equal()
    matcher.match_copies()
    matcher.keep_forms()
    matcher.sort_out()
    return matcher.match


class _Matcher:
    def __init__(self, old: Tensors, new: Tensors) -> None:
        self._old, self._new = old, new
        self._old_content, self._new_content = Content(old), Content(new)
        self._old_left, self._new_left = dict.fromkeys(old), dict.fromkeys(new)
        self.has_content = not any(t.is_meta for side in (old, new) for t in side.values())
        self.match = Match()

    def match_whole(self) -> None:
        """Pair what is equal, where no other is; of manifests, what has one name and one form."""
        if not self.has_content:
            self.keep_equal()
            return
        olds = self._by_label(self._old_left, self._old, self._old_content)
        news = self._by_label(self._new_left, self._new, self._new_content)
        for label, names in news.items():
            others = olds.get(label, [])
            if len(others) == len(names) == 1 and self._new_content.is_telling(names[0]):
                self._pair(others[0], names[0], "proved")

    def keep_equal(self) -> None:
        """Keep what has one name and one content, and nothing says that it became another."""
        for key in self._common():
            if self._old_label(key) == self._new_label(key):
                self._keep(key)

    def match_copies(self) -> None:
        """Find what stands under several new keys, and once before."""
        if not self.has_content:
            return
        self._pair_with_first_copy()
        holders: dict[Hashable, list[str]] = defaultdict(list)
        for key in self._new:
            if key not in self._new_left and self._new_content.is_telling(key):
                holders[self._new_label(key)].append(key)
        left = {self._old_label(key) for key in self._old_left}
        for key in list(self._new_left):
            label = self._new_label(key)
            if len(holders.get(label, ())) == 1 and label not in left:
                self.match.copies[key] = holders[label][0]
                del self._new_left[key]

    def _pair_with_first_copy(self) -> None:
        """Let one of several new keys that hold the same be what the old one became; the others are its copies."""
        olds = self._by_label(self._old_left, self._old, self._old_content)
        news = self._by_label(self._new_left, self._new, self._new_content)
        for label, names in news.items():
            if len(olds.get(label, ())) == 1 and self._new_content.is_telling(names[0]):
                self._pair(olds[label][0], names[0], "likely")

    def match_views(self) -> None:
        """Pair what is equal once it is permuted, cast or given another shape."""
        if not self.has_content:
            return
        found: dict[str, list[tuple[str, View]]] = defaultdict(list)
        for new_key in self._new_left:
            if not self._new_content.is_telling(new_key):
                continue
            wanted = self._new_content.hash_of(new_key, View())
            for old_key, view in self._views_like(self._new[new_key]):
                if self._old_content.hash_of(old_key, view) == wanted:
                    found[new_key].append((old_key, view))
        users = defaultdict(set)
        for new_key, ways in found.items():
            for old_key, _ in ways:
                users[old_key].add(new_key)
        for new_key, ways in found.items():
            sources = {old_key for old_key, _ in ways}
            if len(sources) == 1 and len(users[ways[0][0]]) == 1:
                # A square matrix may be its own transpose; then the plainest way is as good.
                old_key, view = min(ways, key=lambda way: sum(x is not None for x in _steps(way)))
                self._make(Making.of_one(new_key, old_key, view))

    def _views_like(self, wanted: torch.Tensor) -> Iterator[tuple[str, View]]:
        for key in self._old_left:
            tensor = self._old[key]
            if tensor.numel() != wanted.numel():
                continue
            dtype = None if tensor.dtype == wanted.dtype else _name(wanted.dtype)
            for dims in orders_to(tensor.shape, wanted.shape):
                if dims is not None or dtype is not None:
                    yield key, View(dims, dtype)
            if tensor.shape != wanted.shape:
                yield key, View(None, dtype, tuple(wanted.shape))

    def match_rows(self) -> None:
        """Find tensors that were cut or joined along a dimension, stacked, ordered anew or padded."""
        if self.has_content:
            old = {key: self._old[key] for key in self._old_left}
            new = {k: self._new[k] for k in self._new_left if self._new_content.is_telling(k)}
            for making in find_in_rows(old, new):
                self._make(making)
            self._match_siblings()

    def _match_siblings(self) -> None:
        """Let biases go the way of their weights, if that gives what is there."""
        for group in connected(list(self.match.makings.values())):
            for leaf in self._leaves_beside(group):
                siblings = [sibling(making, leaf) for making in group]
                if all(
                    making is not None and self._fits(making, beside)
                    for making, beside in zip(siblings, group, strict=True)
                ):
                    for making in siblings:
                        assert making is not None
                        self._make(making)

    def _leaves_beside(self, group: list[Making]) -> list[str]:
        """Return the last names that all modules of a group have left."""
        olds = {module_of(source) for making in group for source in making.sources}
        news = {module_of(making.target) for making in group}
        leaves: list[set[str]] = [
            {key[len(module) :] for key in left if module_of(key) == module}
            for modules, left in ((olds, self._old_left), (news, self._new_left))
            for module in modules
        ]
        return sorted(set.intersection(*leaves)) if leaves else []

    def _fits(self, making: Making, beside: Making) -> bool:
        """Tell whether a making gives the tensor that is there, of rows that are as many as those beside it."""
        import torch

        for part, other in zip(making.parts, beside.parts, strict=True):
            dims, tensor = other.view.dims, self._old[part.source]
            dim = beside.dim if dims is None else dims[beside.dim]
            if tensor.dim() == 0 or len(tensor) != self._old[other.source].shape[dim]:
                return False
        new = self._new[making.target]
        pieces = [
            self._old[part.source][list(part.rows) or slice(part.start, part.stop)].to(new.dtype)
            for part in making.parts
        ]
        if len({piece.shape[1:] for piece in pieces}) > 1:
            return False
        made = torch.cat(pieces)
        if making.order:
            made = made[list(making.order)]
        return have_equal_bits(made, new)

    def match_names(self) -> None:
        """Pair what is alike by where it stands."""
        known = self.match.known_pairs()
        dtypes = self._new_dtypes()
        olds = {
            k: self._label_as(k, dtypes) for k in self._evidence(self._old_left, self._old_content)
        }
        news = {k: self._new_label(k) for k in self._evidence(self._new_left, self._new_content)}
        # Without content in common, a tensor that is not telling is no evidence for one that is.
        pairs = pair_names(olds, news, known, counts_layers=not self.has_content)
        for new_key, old_key in pairs.items():
            self._pair(old_key, new_key, "likely")

    def keep_forms(self) -> None:
        """Take what has one name and another content for the same, as it has been trained on."""
        for key in self._common():
            old, new = self._old[key], self._new[key]
            if old.shape == new.shape:
                if old.dtype == new.dtype:
                    self._keep(key)
                    self.match.changed.append(key)
                else:
                    view = View(dtype=_name(new.dtype))
                    self._make(Making.of_one(key, key, view, certainty="likely"))
            elif (
                len(orders := list(orders_to(old.shape, new.shape))) == 1 and old.dtype == new.dtype
            ):
                self._make(Making.of_one(key, key, View(orders[0]), certainty="likely"))
        self._pair_forms()

    def _pair_forms(self) -> None:
        """Pair what is left by names and shapes alone."""
        known = self.match.known_pairs()
        dtypes = self._new_dtypes()
        olds = {k: _form(self._old[k], dtypes) for k in self._old_left}
        news = {k: _form(self._new[k], {}) for k in self._new_left}
        if self._shares_content():
            # What holds one number all over has not been trained, and is what it was.
            olds = {k: (form, self._number(self._old, k)) for k, form in olds.items()}
            news = {k: (form, self._number(self._new, k)) for k, form in news.items()}
        for new_key, old_key in pair_names(olds, news, known, counts_layers=True).items():
            self._pair(old_key, new_key, "likely")
            self.match.changed.append(new_key)

    def _evidence(self, left: Mapping[str, None], content: Content) -> list[str]:
        """Return the keys whose content may say what they are; one number all over does not where nothing else does."""
        if not self.has_content or self._shares_content():
            return list(left)
        return [key for key in left if content.is_telling(key)]

    def _shares_content(self) -> bool:
        """Tell whether the new side holds anything of the old one: of two that were trained apart it does not."""
        if not self.has_content:
            return False
        kept = self.match.kept.difference(self.match.changed)
        return any(map(self._new_content.is_telling, kept)) or any(
            making.certainty == "proved" for making in self.match.makings.values()
        )

    def _number(self, tensors: Tensors, key: str) -> float | None:
        """Return the one number that all elements of a tensor are, of several."""
        content = self._old_content if tensors is self._old else self._new_content
        tensor = tensors[key]
        if tensor.numel() < 2 or content.is_telling(key):
            return None
        return complex(tensor.reshape(-1)[0].item()).real

    def sort_out(self) -> None:
        """Say of what is left whether it was dropped, added, or cannot be decided."""
        olds, news = (
            self._by_possible_pair(self._old_left, self._old),
            self._by_possible_pair(self._new_left, self._new),
        )
        for form in dict.fromkeys([*olds, *news]):
            if form in olds and form in news:
                self.match.undecided.append((tuple(olds[form]), tuple(news[form])))
                continue
            self.match.dropped += olds.get(form, ())
            for key in news.get(form, ()):
                is_number = self.has_content and not self._new_content.is_telling(key)
                (self.match.added if is_number else self.match.unknown).append(key)

    def _by_possible_pair(
        self, left: Mapping[str, None], tensors: Tensors
    ) -> dict[Hashable, list[str]]:
        """Group keys by what one must share with the other side's to be made of it, in whatever way."""
        forms: dict[Hashable, list[str]] = defaultdict(list)
        by_number = self._shares_content()
        for key in left:
            number = self._number(tensors, key) if by_number else None
            forms[tuple(sorted(tensors[key].shape)), number].append(key)
        return forms

    def _common(self) -> list[str]:
        return [key for key in self._old_left if key in self._new_left]

    def _keep(self, key: str) -> None:
        self.match.kept.add(key)
        del self._old_left[key], self._new_left[key]

    def _pair(self, old_key: str, new_key: str, certainty: Certainty) -> None:
        """Let a new key be what an old one became, in another dtype where it has another."""
        old, new = self._old[old_key], self._new[new_key]
        if old_key == new_key and old.dtype == new.dtype:
            self._keep(old_key)
            return
        view = View(dtype=None if old.dtype == new.dtype else _name(new.dtype))
        self._make(Making.of_one(new_key, old_key, view, certainty=certainty))

    def _make(self, making: Making) -> None:
        self.match.makings[making.target] = making
        del self._new_left[making.target]
        for source in making.sources:
            self._old_left.pop(source, None)

    def _by_label(
        self, left: Mapping[str, None], tensors: Tensors, content: Content
    ) -> dict[Hashable, list[str]]:
        labels: dict[Hashable, list[str]] = defaultdict(list)
        for key in left:
            labels[_label(tensors[key], content.hash_of(key, View()))].append(key)
        return labels

    def _old_label(self, key: str) -> Hashable:
        return self._label_as(key, {})

    def _new_label(self, key: str) -> Hashable:
        tensor = self._new[key]
        if not self.has_content:
            return _form(tensor, {})
        return _label(tensor, self._new_content.hash_of(key, View()))

    def _label_as(self, key: str, dtypes: Mapping[torch.dtype, torch.dtype]) -> Hashable:
        """Return the label that an old tensor has in the dtype that the others of its dtype have got."""
        tensor = self._old[key]
        if not self.has_content:
            return _form(tensor, dtypes)
        dtype = dtypes.get(tensor.dtype, tensor.dtype)
        view = View(dtype=None if dtype == tensor.dtype else _name(dtype))
        return _name(dtype), tuple(tensor.shape), self._old_content.hash_of(key, view)

    def _new_dtypes(self) -> dict[torch.dtype, torch.dtype]:
        """Return the dtypes that all old tensors of a dtype that are known have got."""
        found: dict[torch.dtype, set[torch.dtype]] = defaultdict(set)
        for key in self.match.kept:
            found[self._old[key].dtype].add(self._new[key].dtype)
        for making in self.match.makings.values():
            for source in making.sources:
                found[self._old[source].dtype].add(self._new[making.target].dtype)
        return {old: next(iter(news)) for old, news in found.items() if len(news) == 1}


def orders_to(shape: Sequence[int], wanted: Sequence[int]) -> Iterator[tuple[int, ...] | None]:
    """Yield the orders of dimensions that give a shape; None for the order that they have."""
    if sorted(shape) != sorted(wanted) or len(shape) > MAX_PERMUTED_DIMS:
        if tuple(shape) == tuple(wanted):
            yield None
        return
    for dims in itertools.permutations(range(len(shape))):
        if tuple(shape[dim] for dim in dims) == tuple(wanted):
            yield None if dims == tuple(range(len(shape))) else dims


def _steps(way: tuple[str, View]) -> tuple[object, ...]:
    view = way[1]
    return view.dims, view.dtype, view.shape


def _label(tensor: torch.Tensor, content: int) -> Hashable:
    return _name(tensor.dtype), tuple(tensor.shape), content


def _form(tensor: torch.Tensor, dtypes: Mapping[torch.dtype, torch.dtype]) -> Hashable:
    return _name(dtypes.get(tensor.dtype, tensor.dtype)), tuple(tensor.shape)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

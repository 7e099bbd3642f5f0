"""The order of parameters: the one that a module's tree gives its keys, doubts about it, and one that is declared.

`Module.named_parameters()` and `Module.state_dict()` go through the tree of modules in the same way: a module's own
parameters first, then its children, each with all that is below it, in the order in which they were registered.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from migrate_ckpt.errors import OptimizerNotFollowed
from migrate_ckpt.operations.moves import list_keys
from migrate_ckpt.operations.patterns import KeyPattern, compiled
from migrate_ckpt.optimizers.declaration import Order


@dataclass
class _Module:
    """One module, with the places of the first and the last key below it."""

    path: str
    first: int
    last: int
    children: dict[str, _Module] = field(default_factory=dict)
    tensors: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[list[str]]:
        """The names of what is in it: of its own tensors, and of its children."""
        return [self.tensors, list(self.children)]


def tree_order(keys: Sequence[str]) -> list[str]:
    """Return keys in the order of a tree of modules, each of which stands where its first key does."""
    root, _ = _tree(keys)
    ranks = {}
    for place, key in enumerate(keys):
        rank: list[tuple[int, int]] = []
        module = root
        *above, _ = key.split(".")
        for name in above:
            module = module.children[name]
            rank.append((1, module.first))
        ranks[key] = (*rank, (0, place))
    return sorted(keys, key=ranks.__getitem__)


def doubt_of_tree(keys: Sequence[str]) -> str | None:
    """Say why keys do not tell the order of their modules; None if they do.

    Those of modules beside each other may alternate (`q.weight, k.weight, q.bias, k.bias`), but the first key of
    each and the last must agree on which comes first.
    """
    _, modules = _tree(keys)
    for module in modules:
        children = list(module.children.values())
        for one, other in itertools.pairwise(children):
            if one.last > other.last:
                return f"the keys of {one.path!r} stand on both sides of those of {other.path!r}"
    return None


def doubt_of_change(before: Sequence[str], after: Sequence[str]) -> str | None:
    """Say why the order of keys after a migration may not be that of the refactored model; None if nothing does.

    Args:
        before: The parameters' keys before, in the tree's order.
        after: Those after.
    """
    places = {key: place for place, key in enumerate(before)}
    kept = [key for key in after if key in places]
    for one, other in itertools.pairwise(kept):
        if places[one] > places[other]:
            return f"{one!r} and {other!r} have changed places, and both names were there before"
    known = {module.path: module.names for module in _tree(before)[1]}
    for module in _tree(after)[1]:
        if module.names != known.get(module.path) and not all(map(_is_counted_up, module.names)):
            return f"the numbers below {module.path or 'the top'!r} are not in their order"
    return doubt_of_tree(after)


def _is_counted_up(names: Sequence[str]) -> bool:
    numbers = [int(name) for name in names if re.fullmatch("0|[1-9][0-9]{0,17}", name)]
    return numbers == sorted(numbers)


def declared_groups(
    order: Order, parameters: Sequence[tuple[str, ...]], what: str, *, names_all: bool
) -> list[list[tuple[str, ...]]]:
    """Return parameters, each given by its tied keys, as an author lists them: in one list, or one for each group.

    Args:
        order: What the author lists.
        parameters: All that may be meant.
        what: What to call the list in messages.
        names_all: Whether each of the parameters must be in it; else those that are not are left out.

    Raises:
        OptimizerNotFollowed: An entry means no parameter, or one that must be in it is not.
    """
    entries = [(group, entry) for group, each in enumerate(order) for entry in each]
    listed = _Listed([entry for _, entry in entries])
    ranks = {keys: listed.rank(keys, place) for place, keys in enumerate(parameters)}
    left = [keys[0] for keys, rank in ranks.items() if rank is None]
    if left and names_all:
        raise OptimizerNotFollowed(
            f"{what} does not say where {list_keys(left)} stands.", keys=left
        )
    if listed.unused:
        raise OptimizerNotFollowed(
            f"{what} lists {list_keys(listed.unused)}, which is none of the parameters.",
            keys=listed.unused,
        )
    groups: list[list[tuple[str, ...]]] = [[] for _ in order]
    found = [(rank, keys) for keys, rank in ranks.items() if rank is not None]
    for rank, keys in sorted(found):
        groups[entries[rank[0]][0]].append(keys)
    return groups


class _Listed:
    """The entries of a declared order."""

    def __init__(self, entries: Sequence[KeyPattern]) -> None:
        self.texts = [entry if isinstance(entry, str) else entry.pattern for entry in entries]
        self._used: set[int] = set()
        self._exact = {text: number for number, text in reversed(list(enumerate(self.texts)))}
        self._patterns = [
            re.compile(f"(?:{compiled(entry).pattern})(?:\\..*)?", re.DOTALL) for entry in entries
        ]

    @property
    def unused(self) -> list[str]:
        return [text for number, text in enumerate(self.texts) if number not in self._used]

    def rank(self, keys: Iterable[str], place: int) -> tuple[int, tuple[int, ...], int] | None:
        """Return what to sort a parameter by, which has several keys if it is tied."""
        found = [rank for key in keys if (rank := self._rank(key)) is not None]
        if not found:
            return None
        number, values = min(found)
        self._used.add(number)
        return number, values, place

    def _rank(self, key: str) -> tuple[int, tuple[int, ...]] | None:
        # A whole key that is listed is meant before a module that is.
        if key in self._exact:
            return self._exact[key], ()
        for number, pattern in enumerate(self._patterns):
            if found := pattern.fullmatch(key):
                values = tuple(int(v) for v in found.groupdict().values() if v and v.isdecimal())
                return number, values
        return None


def _tree(keys: Iterable[str]) -> tuple[_Module, list[_Module]]:
    root = _Module("", 0, 0)
    modules = [root]
    for place, key in enumerate(keys):
        module = root
        *above, last = key.split(".")
        for name in above:
            child = module.children.get(name)
            if child is None:
                path = f"{module.path}.{name}" if module.path else name
                child = module.children[name] = _Module(path, place, place)
                modules.append(child)
            child.last = place
            module = child
        module.tensors.append(last)
    return root, modules

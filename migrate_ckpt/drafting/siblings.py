"""What goes together: tensors made of the same old ones, the parameters beside them, and the modules around them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace

from migrate_ckpt.drafting.makings import Making, View
from migrate_ckpt.drafting.pairing import shared_beginning


def module_of(key: str) -> str:
    """Return the name of the module with the dot behind it."""
    return key[: key.rfind(".") + 1]


def connected(makings: Iterable[Making]) -> list[list[Making]]:
    """Return the groups of makings that share a source, of those that are more than a name."""
    groups: list[list[Making]] = []
    by_source: dict[str, list[Making]] = {}
    for making in makings:
        if making.is_whole and not making.order:
            continue
        joined = {id(by_source[s]): by_source[s] for s in making.sources if s in by_source}
        group = [making, *itertools.chain.from_iterable(joined.values())]
        groups = [g for g in groups if id(g) not in joined]
        groups.append(group)
        for member in group:
            for source in member.sources:
                by_source[source] = group
    return groups


def sibling(making: Making, leaf: str) -> Making | None:
    """Return the same for another parameter of the modules, a vector of their rows."""
    if making.kind != "joined" or making.padding or making.is_whole:
        return None

    def beside(key: str) -> str:
        return module_of(key) + leaf

    parts = tuple(replace(part, source=beside(part.source), view=View()) for part in making.parts)
    return Making(beside(making.target), parts, order=making.order, certainty="likely")


def around(sources: Sequence[str], targets: Sequence[str]) -> list[tuple[str, str]]:
    """Return a pair of keys whose modules are those around what was cut or joined, if one side has several."""
    if len(sources) > 1 and len(targets) > 1:
        return []
    many, one = (sources, targets[0]) if len(sources) > 1 else (targets, sources[0])
    split = [key.split(".") for key in many]
    around = shared_beginning(split)
    below = len(split[0]) - len(around) if split[0][-1] == one.split(".")[-1] else 1
    module = one.split(".")[:-below]
    known = ".".join([*around, "x"]), ".".join([*module, "x"])
    return [known if many is sources else (known[1], known[0])]

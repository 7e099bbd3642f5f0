"""The order in which an optimizer has its parameters after a migration: the refactored model's, or a declared one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from migrate_ckpt.errors import OptimizerNotFollowed
from migrate_ckpt.operations.module_versions import versions_of
from migrate_ckpt.operations.moves import replace_items
from migrate_ckpt.operations.sections import StateDict, own_keys
from migrate_ckpt.optimizers.declaration import Order
from migrate_ckpt.optimizers.ordering import declared_groups, doubt_of_change, tree_order
from migrate_ckpt.optimizers.slots import Slot


@dataclass(frozen=True)
class Then:
    """The slots of an optimizer before a migration, and the keys of its state dict then."""

    slots: tuple[Slot, ...]
    keys: tuple[str, ...]


def arrange(
    slots: Sequence[Slot], keys: Sequence[str], then: Then, groups: int
) -> list[list[Slot]]:
    """Return the slots of each group in the order in which the refactored model has its parameters.

    That is the order which a tree of modules gives the keys of the migrated state dict.

    Raises:
        OptimizerNotFollowed: The keys speak against it.
    """
    listed = in_groups(slots, groups)
    if {slot.position: slot.keys for slot in slots} == {s.position: s.keys for s in then.slots}:
        return listed
    known = {key for slot in then.slots for key in slot.keys}
    meant = {key for slot in slots for key in slot.keys}
    doubt = doubt_of_change(
        tree_order([key for key in then.keys if key in known]),
        [key for key in keys if key in meant],
    )
    if doubt is not None:
        raise _unordered(doubt)
    places_then, places = _places(then.keys), _places(keys)
    listed_then = in_groups(then.slots, groups)
    return [
        _arrange_group(group, places, group_then, places_then)
        for group, group_then in zip(listed, listed_then, strict=True)
    ]


def arrange_as_declared(order: Order, slots: Sequence[Slot], groups: int) -> list[list[Slot]]:
    """Return the slots of each group in an order that the author declares.

    Raises:
        OptimizerNotFollowed: It is not an order of these, or not with these groups.
    """
    by_keys = {slot.keys: slot for slot in slots}
    listed = declared_groups(order, list(by_keys), "order_after", names_all=True)
    declared = [[by_keys[keys] for keys in group] for group in listed]
    if len(declared) == 1:
        return [[slot for slot in declared[0] if slot.group == n] for n in range(groups)]
    is_kept = all(slot.group == n for n, group in enumerate(declared) for slot in group)
    if len(declared) != groups or not is_kept:
        raise OptimizerNotFollowed(
            "order_after has other groups than the optimizer: a parameter stays in its group."
        )
    return declared


def arrange_keys(model: StateDict, order: Order, slots: Sequence[Slot]) -> None:
    """Let the keys of a state dict stand in a declared order, for whoever reads it off them next.

    They change places among themselves. Lists for each group say nothing of the order of all, and leave them.
    """
    if len(order) > 1:
        return
    [listed] = declared_groups(order, [slot.keys for slot in slots], "order_after", names_all=True)
    put_in_order(model, [key for keys in listed for key in keys])
    _arrange_versions(model)


def put_in_order(model: StateDict, order: Sequence[str]) -> None:
    """Bring keys of a state dict into an order, in the places that they hold together."""
    known, meant = iter(order), set(order)
    keys = [next(known) if key in meant else key for key in model]
    if keys != list(model):
        replace_items(model, {key: model[key] for key in keys})


def in_groups(slots: Sequence[Slot], groups: int) -> list[list[Slot]]:
    """Return the slots of each group as they are listed."""
    listed = sorted(slots, key=lambda slot: slot.place)
    return [[slot for slot in listed if slot.group == number] for number in range(groups)]


def named_first(slots: Sequence[Slot], keys: Sequence[str]) -> list[Slot]:
    """Let tied parameters have the first of their keys in front, which is their name for torch."""
    places = _places(keys)
    return [slot.with_keys(sorted(slot.keys, key=places.__getitem__)) for slot in slots]


def _arrange_group(
    group: list[Slot],
    places: Mapping[str, int],
    group_then: Sequence[Slot],
    places_then: Mapping[str, int],
) -> list[Slot]:
    """Return a group in the model's order, if it was in the model's order then; or as it is, if that fits as well."""
    arranged = sorted(group, key=lambda slot: _place(slot, places))
    were = [_place(slot, places_then) for slot in group_then]
    if were == sorted(were) or arranged == group:
        return arranged
    ranks = {place: rank for rank, place in enumerate(sorted(were))}
    rank_of = {slot.place[0]: ranks[place] for slot, place in zip(group_then, were, strict=True)}
    by_model = [(rank_of.get(slot.place[0], len(ranks)), slot.place[1:]) for slot in arranged]
    if by_model != sorted(by_model):
        raise _unordered(
            "the optimizer did not have the parameters of a group in the model's order"
        )
    return group


def _places(keys: Sequence[str]) -> dict[str, int]:
    return {key: place for place, key in enumerate(tree_order(keys))}


def _place(slot: Slot, places: Mapping[str, int]) -> int:
    return min(places[key] for key in slot.keys)


def _unordered(doubt: str) -> OptimizerNotFollowed:
    return OptimizerNotFollowed(
        f"The order of the parameters in the refactored model is not certain: {doubt}. Say it with "
        "`optimizer = follow(order_after=[...])`: the modules or parameters in the order of `model.parameters()`."
    )


def _arrange_versions(model: StateDict) -> None:
    """Bring the modules in `_metadata` into the order of the keys; one without keys stays behind the one before it."""
    versions = versions_of(model)
    if versions is None:
        return
    first: dict[str, int] = {}
    for place, key in enumerate(tree_order(own_keys(model))):
        above = key.split(".")[:-1]
        for depth in range(len(above) + 1):
            first.setdefault(".".join(above[:depth]), place)
    ranks, rank = {}, -1
    for module in versions:
        rank = first.get(module, rank)
        ranks[module] = rank
    order = sorted(ranks, key=ranks.__getitem__)
    replace_items(versions, {module: versions[module] for module in order})

"""Finds out which parameter has which position in an optimizer, and refuses where that is not certain.

It is certain

* by name: the groups have torch's `param_names`, or the positions are names, and each is a key of the state dict;
* by declaration: the author lists the parameters in order, and there are as many as positions;
* by count: there is one group with as many positions as the state dict has tensors that may be parameters, the keys
  tell the order of the modules and its `_metadata` the same one, and every state that has tensors has one of its
  parameter's shape;
* by shape: every position has a state, and its shape is that of one tensor of the state dict only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from migrate_ckpt.errors import OptimizerNotFollowed
from migrate_ckpt.operations.module_versions import versions_of
from migrate_ckpt.operations.moves import list_keys
from migrate_ckpt.operations.paths import show_path
from migrate_ckpt.operations.sections import is_tensor
from migrate_ckpt.optimizers.declaration import Follow
from migrate_ckpt.optimizers.ordering import declared_groups, doubt_of_tree, tree_order
from migrate_ckpt.optimizers.slots import Slot, may_be_parameter, shapes_in, tensors_of
from migrate_ckpt.optimizers.states import OptimizerState

_ELEMENTWISE = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")


@dataclass(frozen=True)
class Named:
    """The slots of an optimizer, and what its names lack of the keys in front."""

    slots: tuple[Slot, ...]
    prefix: str = ""


def name_positions(optimizer: OptimizerState, model: Mapping[str, Any], follow: Follow) -> Named:
    """Return the parameter of each position.

    Raises:
        OptimizerNotFollowed: It is not certain; says why, and how to say it.
    """
    optimizer.refuse_malformed()
    tensors = tensors_of(model)
    names = optimizer.names
    if names is not None:
        prefix = _prefix(names, tensors)
        if prefix is not None:
            slots = _by_name(optimizer, names, tensors, prefix)
            return Named(_agreeing(optimizer, slots, model, "its names"), prefix)
    may_be = may_be_parameter(model, follow.buffers)
    parameters = [keys for keys in tensors if may_be(keys)]
    if follow.order_before is not None:
        return Named(_by_declaration(optimizer, model, follow, parameters))
    if names is not None:
        first = next(name for group in names for name in group)
        raise _uncertain(
            optimizer, f"its names, such as {first!r}, are not the keys of the state dict"
        )
    if not follow.infers:
        raise _uncertain(
            optimizer, "it has no param_names, and an earlier migration has not taken it along"
        )
    return Named(
        _by_count(optimizer, model, parameters)
        or _by_shape(optimizer, model, tensors)
        or _refuse(optimizer, model, parameters)
    )


def _prefix(names: Sequence[Sequence[str]], tensors: Iterable[tuple[str, ...]]) -> str | None:
    """Return what all names lack to be keys; None if they are none, or if that is not the only way."""
    keys = {key for tied in tensors for key in tied}
    flat = [name for group in names for name in group]
    if not flat or all(name in keys for name in flat):
        return ""
    ends = [key[: -len(flat[0])] for key in keys if key.endswith(f".{flat[0]}")]
    fitting = [prefix for prefix in ends if all(f"{prefix}{name}" in keys for name in flat)]
    return fitting[0] if len(fitting) == 1 else None


def _by_name(
    optimizer: OptimizerState,
    names: Sequence[Sequence[str]],
    tensors: Sequence[tuple[str, ...]],
    prefix: str,
) -> tuple[Slot, ...]:
    owner = {key: keys for keys in tensors for key in keys}
    listed = [[owner[f"{prefix}{name}"] for name in group] for group in names]
    flat = [keys for group in listed for keys in group]
    twice = next((keys for keys, count in Counter(flat).items() if count > 1), None)
    if twice is not None:
        raise _uncertain(
            optimizer, f"it has {list_keys(twice)} twice, which the state dict has as one tensor"
        )
    return _slots(optimizer, listed)


def _by_declaration(
    optimizer: OptimizerState,
    model: Mapping[str, Any],
    follow: Follow,
    parameters: Sequence[tuple[str, ...]],
) -> tuple[Slot, ...]:
    assert follow.order_before is not None
    listed = declared_groups(follow.order_before, parameters, "order_before", names_all=False)
    counts = list(map(len, optimizer.positions))
    if len(listed) == 1:
        flat = listed[0]
        ends = [sum(counts[: number + 1]) for number in range(len(counts))]
        listed = [flat[end - count : end] for end, count in zip(ends, counts, strict=True)]
        is_right = len(flat) == sum(counts)
    else:
        is_right = list(map(len, listed)) == counts
    if not is_right:
        raise _uncertain(
            optimizer,
            f"order_before means {sum(map(len, listed))} parameters in {len(listed)} groups, and it "
            f"has {counts}",
        )
    return _agreeing(optimizer, _slots(optimizer, listed), model, "order_before")


def _agreeing(
    optimizer: OptimizerState, slots: tuple[Slot, ...], model: Mapping[str, Any], what: str
) -> tuple[Slot, ...]:
    """Return the slots, if moments that are known to have their parameter's shape do."""
    wrong = [slot.keys[0] for slot in slots if not _agrees(slot, model)]
    if wrong:
        raise _uncertain(
            optimizer, f"by {what} the states of {list_keys(wrong)} would not have its shape"
        )
    return slots


def _agrees(slot: Slot, model: Mapping[str, Any]) -> bool:
    shape = tuple(model[slot.keys[0]].shape)
    values = [(slot.state or {}).get(name) for name in _ELEMENTWISE]
    return all(tuple(value.shape) == shape for value in values if is_tensor(value))


def _by_count(
    optimizer: OptimizerState, model: Mapping[str, Any], parameters: Sequence[tuple[str, ...]]
) -> tuple[Slot, ...]:
    [positions, *others] = optimizer.positions
    keys = [key for tied in parameters for key in tied]
    if others or len(positions) != len(parameters) or _doubt_of_order(model, keys):
        return ()
    slots = _slots(optimizer, [parameters])
    for slot in slots:
        shapes = shapes_in(slot.state)
        if shapes and tuple(model[slot.keys[0]].shape) not in shapes:
            return ()
    return slots


def _by_shape(
    optimizer: OptimizerState, model: Mapping[str, Any], tensors: Sequence[tuple[str, ...]]
) -> tuple[Slot, ...]:
    of_shape: dict[tuple[int, ...], list[tuple[str, ...]]] = {}
    for keys in tensors:
        of_shape.setdefault(tuple(model[keys[0]].shape), []).append(keys)
    listed = []
    for positions in optimizer.positions:
        shapes = [shapes_in(optimizer.state.get(position)) for position in positions]
        found = [of_shape.get(next(iter(each)), []) if len(each) == 1 else [] for each in shapes]
        if any(len(candidates) != 1 for candidates in found):
            return ()
        listed.append([keys for [keys] in found])
    flat = [keys for group in listed for keys in group]
    return _slots(optimizer, listed) if len(set(flat)) == len(flat) else ()


def _refuse(
    optimizer: OptimizerState, model: Mapping[str, Any], parameters: Sequence[tuple[str, ...]]
) -> tuple[Slot, ...]:
    counts = list(map(len, optimizer.positions))
    keys = [key for tied in parameters for key in tied]
    doubt = _doubt_of_order(model, keys)
    if len(counts) > 1:
        why = f"it has no param_names and {len(counts)} groups of {counts} parameters"
    elif counts[0] != len(parameters):
        why = (
            f"it has no param_names and {counts[0]} parameters, and the state dict has {len(parameters)} tensors "
            "that may be parameters"
        )
    elif doubt is not None:
        why = f"it has no param_names, and {doubt}"
    else:
        why = "it has no param_names, and its states do not have the shapes of the parameters in their order"
    raise _uncertain(optimizer, why)


def _slots(
    optimizer: OptimizerState, listed: Sequence[Sequence[tuple[str, ...]]]
) -> tuple[Slot, ...]:
    ranks = {position: rank for rank, position in enumerate(optimizer.state)}
    return tuple(
        Slot(
            keys,
            optimizer.state.get(position),
            group,
            (place,),
            (ranks.get(position, len(ranks)),),
            position,
        )
        for group, positions in enumerate(optimizer.positions)
        for place, (position, keys) in enumerate(zip(positions, listed[group], strict=True))
    )


def _doubt_of_order(model: Mapping[str, Any], keys: Iterable[str]) -> str | None:
    """Say why the keys may not have the order in which the model had them when it was saved; None if nothing says so.

    A function that takes a key out and puts it in again under another name moves it to the end, but seldom thinks of
    the `_metadata`, in which torch lists all modules in their order.
    """
    as_stand = _as_stand(model, keys)
    versions = versions_of(model)
    if versions is None:
        return doubt_of_tree(as_stand)
    owners = list(dict.fromkeys(key.rpartition(".")[0] for key in tree_order(as_stand)))
    known = set(owners)
    if owners != [module for module in versions if module in known]:
        return "the keys of the state dict have another order, or other names, than the modules in its _metadata"
    return doubt_of_tree(as_stand)


def _as_stand(model: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    meant = set(keys)
    return [key for key in model if key in meant]


def _uncertain(optimizer: OptimizerState, why: str) -> OptimizerNotFollowed:
    path = show_path(optimizer.path)
    return OptimizerNotFollowed(
        f"Which parameter has which position in {path} is not certain: {why}. Say it with "
        "`optimizer = follow(order_before=[...])`, a list for each group, and which keys are no parameters with "
        '`buffers=[...]`; or give the optimizer up with `follow(states="drop")`.',
        keys=[path],
    )

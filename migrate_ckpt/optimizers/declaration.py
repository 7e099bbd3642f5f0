"""What a migration says of the optimizers in a checkpoint: the `optimizer = follow(...)` of its file."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from migrate_ckpt.operations.paths import Path, PathLike, to_path
from migrate_ckpt.operations.patterns import KeyPattern, compiled

States: TypeAlias = Literal["carry", "drop", "keep", "refuse"]
"""What becomes of an optimizer's states: they follow, go, stay as they are, or the checkpoint is refused."""
Uncarried: TypeAlias = Literal["refuse", "drop"]
"""What to do about the state of one parameter that cannot follow: refuse the checkpoint, or start it afresh."""
Order: TypeAlias = tuple[tuple[KeyPattern, ...], ...]
"""One list of all parameters in their order; or several, one for each group of the optimizer."""
OrderLike: TypeAlias = Sequence[KeyPattern] | Sequence[Sequence[KeyPattern]]


@dataclass(frozen=True)
class Follow:
    """How one optimizer, or with no path each, follows a migration."""

    path: Path | None = None
    states: States = field(default="carry", kw_only=True)
    uncarried: Uncarried = field(default="refuse", kw_only=True)
    section: Path | None = field(default=None, kw_only=True)
    order_before: Order | None = field(default=None, kw_only=True)
    order_after: Order | None = field(default=None, kw_only=True)
    buffers: tuple[KeyPattern, ...] = field(default=(), kw_only=True)
    renames: tuple[tuple[str, str], ...] | None = field(default=None, kw_only=True)
    copies: tuple[Path, ...] = field(default=(), kw_only=True)
    # Not after a migration of the same run that has left the optimizer behind.
    infers: bool = field(default=True, kw_only=True)
    # The way back from a migration that does not tell the order of before.
    is_unordered: bool = field(default=False, kw_only=True)
    # The way back has put the keys of the state dict into an order of its own already.
    arranges_keys: bool = field(default=True, kw_only=True)


def follow(
    path: PathLike | None = None,
    *,
    states: States = "carry",
    uncarried: Uncarried = "refuse",
    section: PathLike | None = None,
    order_before: OrderLike | None = None,
    order_after: OrderLike | None = None,
    buffers: Sequence[KeyPattern] = (),
    renames: Mapping[str, str] | None = None,
    copies: Sequence[PathLike] = (),
) -> Follow:
    """Say how optimizers are to follow a migration; it stands in the file as `optimizer`.

        optimizer = follow(order_after=["embed", "layers.{i}", "head"])

    In an order each entry is a parameter, a template, a compiled regex, or a module, which means all parameters below
    it. Where one entry means several they are sorted by the numbers that its placeholders stand for, and otherwise
    keep their order. A list of lists gives each group of the optimizer its own.

    Args:
        path: The path of the optimizer's state, such as "optimizer_states.0"; None means each that is not named.
        states: "carry" them along; "drop" the optimizer from the checkpoint; "keep" it as it is, where the author
            knows better; or "refuse" a checkpoint that has one.
        uncarried: What to do about a parameter whose state cannot be split or joined as it is: "refuse" the
            checkpoint, or "drop" this parameter's state, so that the optimizer starts afresh for it.
        section: The path of the state dict whose parameters it optimizes; None is the model's.
        order_before: The order of the optimizer's parameters before the migration, where it is not certain.
        order_after: Their order in the refactored model, where it is not that of the migrated state dict.
        buffers: Keys that are no parameters, where that is not certain.
        renames: In a file with `handle`: the old and the new names or templates of all parameters that it renames.
        copies: Paths of further state dicts of the same parameters (EMA, best model) that all operations on the
            model are done to as well.

    Raises:
        ValueError: A word is none of those above, or a template is wrong.
    """
    if states not in ("carry", "drop", "keep", "refuse"):
        raise ValueError(f"states={states!r}: it is 'carry', 'drop', 'keep' or 'refuse'.")
    if uncarried not in ("refuse", "drop"):
        raise ValueError(f"uncarried={uncarried!r}: it is 'refuse' or 'drop'.")
    for pattern in buffers:
        compiled(pattern)
    return Follow(
        None if path is None else to_path(path),
        states=states,
        uncarried=uncarried,
        section=None if section is None else to_path(section),
        order_before=_order(order_before),
        order_after=_order(order_after),
        buffers=tuple(buffers),
        renames=None if renames is None else tuple(renames.items()),
        copies=tuple(map(to_path, copies)),
    )


def _order(order: OrderLike | None) -> Order | None:
    if order is None:
        return None
    entries = [] if isinstance(order, str) else list(order)
    groups = [tuple(entry) for entry in entries if isinstance(entry, (list, tuple))]
    flat = tuple(entry for entry in entries if isinstance(entry, (str, re.Pattern)))
    if not entries or (groups and len(groups) < len(entries)) or () in groups:
        raise ValueError(
            "An order is a list of parameters and modules, or a list of such lists, none of them empty."
        )
    listed = tuple(groups) or (flat,)
    for pattern in itertools.chain(*listed):
        compiled(pattern)
    return listed

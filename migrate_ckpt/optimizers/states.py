"""Finds the optimizers in a checkpoint, and other state dicts, by what they look like, and by the objects they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, MutableSequence, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from migrate_ckpt.errors import OptimizerNotFollowed
from migrate_ckpt.operations.paths import Path, show_path
from migrate_ckpt.operations.sections import is_tensor

MAX_DEPTH = 6
"""How deep in a checkpoint an optimizer is looked for; one that is deeper is found by its declared path."""
MAX_MEMBERS = 10_000
"""How many items of one list or mapping are looked into."""

_MASTERS = ("fp32", "master")
"""How the names begin that apex, fairseq and Megatron give the parameters' copies of full precision."""

Position: TypeAlias = int | str
"""How an optimizer names a parameter: by its number, counted over all groups, or by its name (FSDP)."""


@dataclass(frozen=True, eq=False)
class OptimizerState:
    """What `Optimizer.state_dict()` of torch gave: `state` by position, and `param_groups`.

    Attributes:
        path: Where it stands.
        held: The state itself.
        masters: Names beside it, or in it, of copies of the parameters by position, which mixed precision keeps.
    """

    path: Path
    held: MutableMapping[str, Any]
    masters: tuple[str, ...] = ()

    @property
    def state(self) -> MutableMapping[Position, Any]:
        state: MutableMapping[Position, Any] = self.held["state"]
        return state

    @property
    def groups(self) -> Sequence[MutableMapping[str, Any]]:
        groups: Sequence[MutableMapping[str, Any]] = self.held["param_groups"]
        return groups

    @property
    def positions(self) -> list[list[Position]]:
        """The positions of each group's parameters."""
        return [list(group["params"]) for group in self.groups]

    @property
    def names(self) -> list[list[str]] | None:
        """The `param_names` of each group; the positions themselves where they are names; None without either."""
        positions = self.positions
        if all(type(position) is str for group in positions for position in group):
            return positions  # type: ignore[return-value]
        names = [list(group.get("param_names") or ()) for group in self.groups]
        are_texts = all(type(name) is str for group in names for name in group)
        is_complete = list(map(len, names)) == list(map(len, positions))
        return names if are_texts and is_complete else None

    def refuse_malformed(self) -> None:
        """Refuse a state that is not as torch makes it.

        Raises:
            OptimizerNotFollowed: Positions are not all different, there are states for positions that no group has,
                or one is no mapping.
        """
        positions = [position for group in self.positions for position in group]
        known = set(positions)
        if len(known) < len(positions) or any(position not in known for position in self.state):
            raise OptimizerNotFollowed(
                f"{show_path(self.path)} names a parameter twice, or has a state for one that no group has.",
                keys=[show_path(self.path)],
            )
        if not all(isinstance(state, Mapping) for state in self.state.values()):
            raise OptimizerNotFollowed(
                f"{show_path(self.path)} has a state that is no mapping of names to values.",
                keys=[show_path(self.path)],
            )


def find_optimizers(ckpt: Any, paths: Iterable[Path] = ()) -> list[OptimizerState]:
    """Return each optimizer's state in a checkpoint, wherever it stands, and those at the paths.

    It is told by its form, which is torch's: a mapping with `state` and a list of `param_groups`, each with `params`.
    """
    found = {path: value for path, value in walk(ckpt) if is_optimizer_state(value)}
    known = set(map(id, found.values()))
    for path in paths:
        value = value_at(ckpt, path)
        if is_optimizer_state(value) and id(value) not in known:
            found[path] = value
    return [
        OptimizerState(path, value, _masters(value_at(ckpt, path[:-1]), value))
        for path, value in found.items()
    ]


def _masters(*held: Any) -> tuple[str, ...]:
    return tuple(
        name
        for each in held
        if isinstance(each, Mapping)
        for name, value in each.items()
        if type(name) is str and name.startswith(_MASTERS) and isinstance(value, (list, Mapping))
    )


def is_optimizer_state(value: Any) -> bool:
    """Tell whether a value has the form of an optimizer's state."""
    if not isinstance(value, MutableMapping) or not {"state", "param_groups"} <= value.keys():
        return False
    groups = value["param_groups"]
    return (
        isinstance(value["state"], MutableMapping)
        and isinstance(groups, MutableSequence)
        and len(groups) > 0
        and all(
            isinstance(group, MutableMapping)
            and isinstance(group.get("params"), MutableSequence)
            and all(type(position) in (int, str) for position in group["params"])
            for group in groups
        )
    )


def walk(ckpt: Any) -> Iterator[tuple[Path, MutableMapping[Any, Any]]]:
    """Yield each mapping in a checkpoint once with its path; the insides of an optimizer's state are passed over."""
    seen: set[int] = set()
    stack: list[tuple[Path, Any]] = [((), ckpt)]
    while stack:
        path, value = stack.pop()
        if id(value) in seen or len(path) > MAX_DEPTH:
            continue
        seen.add(id(value))
        if isinstance(value, MutableMapping):
            yield path, value
            if is_optimizer_state(value):
                continue
        stack += [((*path, name), child) for name, child in reversed(_members(value))]


def path_of(ckpt: Any, held: object) -> Path | None:
    """Return where a mapping stands now; None where it does not."""
    return next((path for path, value in walk(ckpt) if value is held), None)


def value_at(ckpt: Any, path: Path) -> Any:
    """Return what stands at a path of names and numbers of list items; None where nothing does."""
    value = ckpt
    for name in path:
        if isinstance(value, Mapping):
            value = value.get(name)
        elif isinstance(value, list):
            value = value[int(name)] if name.isdecimal() and int(name) < len(value) else None
        else:
            return None
    return value


def remove_optimizers(ckpt: Any, paths: Sequence[Path]) -> None:
    """Take optimizers' states out of a checkpoint; a list of them becomes empty.

    Raises:
        OptimizerNotFollowed: Others would stay in the list, and be taken for them.
    """
    of_parent: dict[Path, list[str]] = {}
    for path in paths:
        if not path:
            raise OptimizerNotFollowed(
                "The checkpoint is nothing but an optimizer's state, which cannot be dropped."
            )
        of_parent.setdefault(path[:-1], []).append(path[-1])
    parents = {path: value_at(ckpt, path) for path in of_parent}
    for path, parent in parents.items():
        if isinstance(parent, list) and len(parent) > len(of_parent[path]):
            raise OptimizerNotFollowed(
                f"{show_path(path)} has {len(parent)} optimizers, and {len(of_parent[path])} of them cannot be "
                "dropped alone: those that stay would be taken for others.",
                keys=[show_path(path)],
            )
    for path, parent in parents.items():
        if isinstance(parent, list):
            parent.clear()
        else:
            for name in of_parent[path]:
                del parent[name]


def _members(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        if len(value) > MAX_MEMBERS:
            return []
        pairs = [(name, child) for name, child in value.items() if type(name) is str]
    elif type(value) is list and len(value) <= MAX_MEMBERS:
        pairs = [(str(i), child) for i, child in enumerate(value)]
    else:
        return []
    return [
        (name, child)
        for name, child in pairs
        if isinstance(child, (Mapping, list)) and not is_tensor(child)
    ]

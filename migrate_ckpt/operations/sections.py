"""Finds the section that an operation works on: a state dict, wherever in the checkpoint it stands."""

from __future__ import annotations

import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, TypeAlias, TypeGuard

from migrate_ckpt.errors import SectionNotFound
from migrate_ckpt.history import ckpt_migration_key, records_key
from migrate_ckpt.operations.paths import Path, PathLike, show_path, to_path

StateDict: TypeAlias = MutableMapping[str, Any]
Sections: TypeAlias = tuple[Path, ...] | None
"""The paths of the sections; None is the model's state dict."""

MODEL_SECTIONS = ("state_dict", "model", "model_state_dict")


def to_sections(section: PathLike | list[PathLike] | None) -> Sections:
    """Return the sections that an author names: one path, a list of paths, or none."""
    if section is None:
        return None
    if isinstance(section, list):
        if not section:
            raise ValueError("The list of sections is empty.")
        return tuple(map(to_path, section))
    return (to_path(section),)


def find_sections(ckpt: Any, sections: Sections) -> list[tuple[Path, StateDict]]:
    """Return each section with its path, a mapping that stands at two paths once.

    Raises:
        SectionNotFound: One is not there or no mapping; or, where none is named, the model's
            state dict is not to be told.
    """
    paths = (_find_model(ckpt),) if sections is None else sections
    found: dict[int, tuple[Path, StateDict]] = {}
    for path in paths:
        state_dict = _section_at(ckpt, path)
        found.setdefault(id(state_dict), (path, state_dict))
    return list(found.values())


def own_keys(state_dict: Mapping[str, Any]) -> list[str]:
    """Return the keys that operations are for: all texts but those of the history."""
    return [key for key in state_dict if type(key) is str and not is_history(key)]


def is_history(key: object) -> bool:
    """Tell whether a key is one that the history stands under."""
    return type(key) is str and key in (ckpt_migration_key, records_key)


def is_tensor(value: Any) -> TypeGuard[Any]:
    """Tell whether a value is a tensor; it can be one only if somebody has imported torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _find_model(ckpt: Any) -> Path:
    candidates = [name for name in MODEL_SECTIONS if is_state_dict(_item(ckpt, name))]
    if len(candidates) == 1:
        return (candidates[0],)
    if candidates:
        raise SectionNotFound(
            f"Which section is meant is not clear: {' and '.join(candidates)} are there. "
            f"Say it, as in section={candidates[0]!r}.",
            keys=candidates,
        )
    if _is_flat(ckpt):
        return ()
    raise SectionNotFound(
        "The checkpoint has no state dict, a mapping that holds tensors, under "
        f"{', '.join(MODEL_SECTIONS)} and is none itself. Say where it stands, as in "
        f"section='ema'; there is: {_listed(ckpt)}.",
        keys=MODEL_SECTIONS,
    )


def _section_at(ckpt: Any, path: Path) -> StateDict:
    value = ckpt
    for depth, name in enumerate(path):
        if not isinstance(value, Mapping) or name not in value:
            raise SectionNotFound(
                f"There is no section {show_path(path)!r}: {show_path(path[:depth])} has "
                f"{_listed(value)}.",
                keys=[show_path(path)],
            )
        value = value[name]
    if not isinstance(value, MutableMapping):
        raise SectionNotFound(
            f"{show_path(path)} is a {type(value).__name__}, not a state dict.",
            keys=[show_path(path)],
        )
    return value


def _item(value: Any, name: str) -> Any:
    return value[name] if isinstance(value, Mapping) and name in value else None


def is_state_dict(value: Any) -> bool:
    """Tell whether a value has the form of a state dict: a mapping that holds tensors, or nothing yet."""
    return isinstance(value, MutableMapping) and (not value or any(map(is_tensor, value.values())))


def _is_flat(ckpt: Any) -> bool:
    if not isinstance(ckpt, MutableMapping):
        return False
    # Extra state of a module may be anything (torch.nn.Module.get_extra_state).
    values = [ckpt[key] for key in own_keys(ckpt) if not key.endswith("_extra_state")]
    return any(map(is_tensor, values)) and not any(isinstance(v, Mapping) for v in values)


def _listed(value: Any, most: int = 8) -> str:
    if not isinstance(value, Mapping):
        return f"no names, as it is a {type(value).__name__}"
    names = [key if type(key) is str else repr(key) for key in value]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "nothing") + more

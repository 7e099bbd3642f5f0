"""What stands beside the tensors: text by name in a safetensors header, `_metadata` at a state dict.

A header knows nothing but text, so what is no text stands in it as JSON, under names of our own:

* the history, under the keys it has in a checkpoint;
* `_migrate-ckpt-ties`: for each name whose tensor is another one's, and is written once, the name of that other;
* `_migrate-ckpt-state-dict-metadata`: the versions of modules that a state dict's `_metadata` holds.

All other text is carried as it is. In a state dict it stands in `_metadata` under `__metadata__`, so that migrations
and files of torch have it too; `{"format": "pt"}`, which every safetensors file of torch has, is not mentioned there.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from migrate_ckpt.errors import UnwritableCheckpoint
from migrate_ckpt.formats.safetensors_header import METADATA, Header
from migrate_ckpt.history import ckpt_migration_key, read_history, records_key, write_history

TIES_KEY = "_migrate-ckpt-ties"
MODULES_KEY = "_migrate-ckpt-state-dict-metadata"
DEFAULT_TEXT = {"format": "pt"}

_HISTORY_KEYS = (ckpt_migration_key, records_key)
_OWN_KEYS = frozenset((*_HISTORY_KEYS, TIES_KEY, MODULES_KEY))


def read_metadata(metadata: Mapping[str, str]) -> OrderedDict[str, Any]:
    """The `_metadata` of a state dict, from the metadata of a header; may be empty."""
    modules = _from_json(metadata.get(MODULES_KEY, "{}"))
    found: OrderedDict[str, Any] = OrderedDict(modules if type(modules) is dict else {})
    for key in _HISTORY_KEYS:
        if key in metadata:
            # What is no JSON stays text, and is refused as a history.
            history = _from_json(metadata[key])
            found[key] = metadata[key] if history is None else history
    text = plain_text(metadata)
    if text and text != DEFAULT_TEXT:
        found[METADATA] = text
    return found


def read_ties(header: Header) -> dict[str, str]:
    """Names that are not in the file, and the tensors in it that they stand for.

    A tie is left out where another program has dropped its tensor, or put another one under its name.
    """
    ties = _from_json(header.metadata.get(TIES_KEY, "{}"))
    if type(ties) is not dict:
        return {}
    return {
        name: kept
        for name, kept in ties.items()
        if type(kept) is str and kept in header.tensors and name not in header.tensors
    }


def plain_text(metadata: Mapping[str, str]) -> dict[str, str]:
    """A header's metadata without what is written there by this library."""
    return {name: text for name, text in metadata.items() if name not in _OWN_KEYS}


def write_metadata(
    value: Mapping[str, Any], ties: Mapping[str, str], default_text: Mapping[str, str]
) -> dict[str, str]:
    """The metadata of a header for a state dict. `default_text` is for one whose `_metadata` holds no text.

    Raises:
        UnwritableCheckpoint: The `_metadata` holds what is neither text nor JSON.
        InvalidHistory: As `read_history` says.
    """
    modules = dict(state_dict_metadata(value))
    written = _check_text(modules.pop(METADATA, default_text))
    history = read_history(value)
    if history.place is not None:
        carrier = write_history(OrderedDict(), history, in_metadata=True)
        written.update(
            {key: _to_json(found) for key, found in state_dict_metadata(carrier).items()}
        )
    modules = {key: found for key, found in modules.items() if key not in _HISTORY_KEYS}
    if modules:
        written[MODULES_KEY] = _checked_json(modules)
    if ties:
        written[TIES_KEY] = _to_json(ties)
    return written


def state_dict_metadata(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """The `_metadata` of a state dict, empty where it has none."""
    metadata = vars(value).get("_metadata") if isinstance(value, OrderedDict) else None
    return metadata if isinstance(metadata, Mapping) else {}


def _check_text(text: object) -> dict[str, str]:
    if not (
        isinstance(text, Mapping)
        and all(type(part) is str for item in text.items() for part in item)
        and not text.keys() & _OWN_KEYS
    ):
        raise UnwritableCheckpoint(
            f"what stands under {METADATA!r} in the state dict's _metadata becomes the header of the safetensors file: "
            "it must be text by name, and no name of this library's own",
            where=f"_metadata/{METADATA}",
        )
    return dict(text)


def _checked_json(modules: Mapping[str, Any]) -> str:
    try:
        text = _to_json(modules)
        if json.loads(text) == modules:
            return text
    except (TypeError, ValueError, RecursionError):
        pass
    raise UnwritableCheckpoint(
        "the state dict's _metadata holds more than numbers and text, which a safetensors header cannot hold. Drop it "
        "in a migration, or keep torch's format",
        where="_metadata",
    )


def _to_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _from_json(text: str) -> Any:
    """The value of a JSON text, None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None

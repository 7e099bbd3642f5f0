"""The index of a sharded checkpoint, as Hugging Face has it: which file holds which tensor.

The format (`save_pretrained` of transformers, https://huggingface.co/docs/safetensors): a JSON file beside the shards,
`model.safetensors.index.json` or `pytorch_model.bin.index.json`,

    {"metadata": {"total_size": 123, ...}, "weight_map": {"layer.weight": "model-00001-of-00002.safetensors", ...}}

`total_size` is the bytes of all tensors. The history stands in `metadata`, under the keys that it has in a checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from migrate_ckpt.errors import UnreadableCheckpoint
from migrate_ckpt.sharded.files import Files, read_whole

SUFFIX = ".index.json"
MAX_INDEX_BYTES = 1 << 26


@dataclass(frozen=True, slots=True)
class Index:
    """What an index says.

    Attributes:
        name: The name of the index file.
        shards: The names of the files, in the order in which the index first names them.
        keys: For each of them the keys of its tensors.
        metadata: What else it says.
    """

    name: str
    shards: tuple[str, ...]
    keys: Mapping[str, tuple[str, ...]]
    metadata: Mapping[str, Any]


def find_index(files: Files) -> str | None:
    """Return the name of the index among some files; None where there is none.

    Raises:
        UnreadableCheckpoint: There are several.
    """
    found = sorted(name for name in files.sizes() if is_index(files, name))
    if len(found) > 1:
        raise UnreadableCheckpoint(
            f"there is more than one index, of a sharded checkpoint each: {', '.join(found)}. Give one at a time"
        )
    return found[0] if found else None


def is_index(files: Files, name: str) -> bool:
    """Tell whether a file is the index of a sharded checkpoint, by its name and its beginning."""
    if not name.endswith(SUFFIX):
        return False
    with files.open(name) as source:
        return source.read(0, 64).lstrip().startswith(b"{")


def read_index(files: Files, name: str) -> Index:
    """Read an index.

    Raises:
        UnreadableCheckpoint: It is none, or names files that are not beside it.
    """
    weight_map, metadata = _read(files, name)
    keys: dict[str, list[str]] = {}
    for key, shard in weight_map.items():
        if not _is_beside(shard):
            raise _unreadable(name, f"says of {key!r:.80} no name of a file beside it")
        keys.setdefault(shard, []).append(key)
    there = files.sizes()
    missing = [shard for shard in keys if shard not in there]
    if missing:
        raise _unreadable(name, f"names files that are not there: {', '.join(missing[:3])}")
    return Index(
        name, tuple(keys), {shard: tuple(found) for shard, found in keys.items()}, metadata
    )


def shards_of(files: Files, name: str) -> tuple[str, ...] | None:
    """Return the names of the shards of an index; None if it cannot be used, which whoever works on it will tell."""
    try:
        return read_index(files, name).shards
    except (UnreadableCheckpoint, OSError):
        return None


def named_by_index(files: Files, name: str) -> frozenset[str]:
    """Return the names of the files that an index needs, whether they are there or not; none if it cannot be read."""
    try:
        weight_map, _ = _read(files, name)
    except (UnreadableCheckpoint, OSError):
        return frozenset()
    return frozenset(shard for shard in weight_map.values() if _is_beside(shard))


def index_text(weight_map: Mapping[str, str], metadata: Mapping[str, Any]) -> bytes:
    """Return the text of an index; the order of the keys is kept."""
    data = {"metadata": dict(metadata), "weight_map": dict(weight_map)}
    return (json.dumps(data, indent=2) + "\n").encode()


def _read(files: Files, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the "weight_map" and the "metadata" of an index."""
    try:
        data = json.loads(read_whole(files, name, MAX_INDEX_BYTES))
    except (ValueError, RecursionError) as error:
        raise _unreadable(name, f"is no JSON: {error}") from error
    weight_map = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise _unreadable(name, 'has no "weight_map" of keys and files')
    metadata = data.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise _unreadable(name, 'has a "metadata" that is no mapping')
    return weight_map, metadata


def _is_beside(name: object) -> bool:
    """Tell whether something is the name of a file in the same folder: no path may lead elsewhere."""
    if not isinstance(name, str) or not name.isprintable():
        return False
    return Path(name).name == name and name not in ("", ".", "..")


def _unreadable(name: str, what: str) -> UnreadableCheckpoint:
    return UnreadableCheckpoint(f"the index {name} {what}")

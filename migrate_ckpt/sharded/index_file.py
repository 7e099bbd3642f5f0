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

SUFFIX = ".index.json"
MAX_INDEX_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class Index:
    """What an index says.

    Attributes:
        path: The index file.
        shards: The names of the files, in the order in which the index first names them.
        keys: For each of them the keys of its tensors.
        metadata: What else it says.
    """

    path: Path
    shards: tuple[str, ...]
    keys: Mapping[str, tuple[str, ...]]
    metadata: Mapping[str, Any]


def find_index(folder: Path) -> Path | None:
    """Return the index in a folder; None where there is none, or more than one."""
    found = [path for path in folder.glob(f"*{SUFFIX}") if is_index(path)]
    return found[0] if len(found) == 1 else None


def is_index(path: Path) -> bool:
    """Tell whether a file is the index of a sharded checkpoint, by its name and its beginning."""
    if not path.name.endswith(SUFFIX) or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(64).lstrip().startswith(b"{")


def read_index(path: Path) -> Index:
    """Read an index.

    Raises:
        UnreadableCheckpoint: It is none, or names files that are not beside it.
    """
    try:
        if path.stat().st_size > MAX_INDEX_BYTES:
            raise _unreadable(path, f"is longer than {MAX_INDEX_BYTES:,} bytes")
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, f"is no JSON: {error}") from error
    weight_map = data.get("weight_map") if isinstance(data, dict) else None
    metadata = data.get("metadata", {}) if isinstance(data, dict) else None
    if not isinstance(weight_map, dict) or not isinstance(metadata, dict) or not weight_map:
        raise _unreadable(path, 'has no "weight_map" of keys and files')
    keys: dict[str, list[str]] = {}
    for key, name in weight_map.items():
        if not _is_beside(name):
            raise _unreadable(path, f"says of {key!r:.80} no name of a file beside it")
        keys.setdefault(name, []).append(key)
    missing = [name for name in keys if not (path.parent / name).is_file()]
    if missing:
        raise _unreadable(path, f"names files that are not there: {', '.join(missing[:3])}")
    return Index(path, tuple(keys), {name: tuple(found) for name, found in keys.items()}, metadata)


def shards_of(path: Path) -> tuple[str, ...]:
    """Return the names of the shards of an index; none if it cannot be read, which whoever works on it will tell."""
    try:
        return read_index(path).shards
    except (UnreadableCheckpoint, OSError):
        return ()


def index_text(weight_map: Mapping[str, str], metadata: Mapping[str, Any]) -> bytes:
    """Return the text of an index; the order of the keys is kept."""
    data = {"metadata": dict(metadata), "weight_map": dict(weight_map)}
    return (json.dumps(data, indent=2) + "\n").encode()


def _is_beside(name: object) -> bool:
    """Tell whether something is the name of a file in the same folder: no path may lead elsewhere."""
    return isinstance(name, str) and Path(name).name == name and name not in ("", ".", "..")


def _unreadable(path: Path, what: str) -> UnreadableCheckpoint:
    return UnreadableCheckpoint(f"the index {path.name} {what}")

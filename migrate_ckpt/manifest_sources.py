"""Where manifests come from: a model, its state dict, or a checkpoint that has one in it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

from migrate_ckpt.manifest import ExpectedTensor, Manifest
from migrate_ckpt.operations.paths import PathLike
from migrate_ckpt.operations.sections import find_sections, is_history, is_tensor, to_sections


def manifest_of(model: Any) -> Manifest:
    """Return the manifest of a `torch.nn.Module`, or of a state dict.

    The tensors may be on the device `meta`: no bytes are read. What is not laid out in rows, such as a sparse or
    quantised tensor, counts as a value. Keys that a history stands under are left out.

    Raises:
        TypeError: It is neither.
    """
    state_dict = model.state_dict() if callable(getattr(model, "state_dict", None)) else model
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"A {type(model).__name__} is neither a module nor a state dict.")
    keys = [key for key in state_dict if type(key) is str and not is_history(key)]
    dense = {key: state_dict[key] for key in keys if _is_dense(state_dict[key])}
    return Manifest(
        {key: _expected(tensor) for key, tensor in dense.items()},
        frozenset(key for key in keys if key not in dense),
        _ties(dense),
        _versions(getattr(state_dict, "_metadata", None)),
    )


def manifest_of_section(ckpt: Any, section: PathLike | None) -> Manifest:
    """Return the manifest of the state dict at a path of a checkpoint in memory, which it then names.

    Raises:
        SectionNotFound: There is none; or, without a path, which is the model's is not to be told.
    """
    ((path, state_dict),) = find_sections(ckpt, to_sections(section))
    return replace(manifest_of(state_dict), section=path)


def _is_dense(value: Any) -> bool:
    if not is_tensor(value):
        return False
    import torch

    return value.layout is torch.strided and not value.is_quantized


def _expected(tensor: Any) -> ExpectedTensor:
    return ExpectedTensor(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))


def _ties(tensors: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    """Return the groups of keys whose tensors are one: the same elements of the same storage, in the same order."""
    groups: dict[Hashable, list[str]] = defaultdict(list)
    for key, tensor in tensors.items():
        if tensor.numel():
            storage = tensor.untyped_storage()._cdata
            layout = (tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
            groups[storage, layout].append(key)
    return tuple(tuple(keys) for keys in groups.values() if len(keys) > 1)


def _versions(metadata: Any) -> dict[str, int]:
    if not isinstance(metadata, Mapping):
        return {}
    entries = {name: entry for name, entry in metadata.items() if isinstance(entry, Mapping)}
    versions = {name: entry.get("version") for name, entry in entries.items()}
    return {
        name: version
        for name, version in versions.items()
        if isinstance(name, str) and type(version) is int and version != 1
    }

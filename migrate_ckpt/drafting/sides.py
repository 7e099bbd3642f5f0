"""The two things that a draft compares, each opened as what it is: a checkpoint, a state dict or a manifest."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from migrate_ckpt.drafting.labels import is_dense
from migrate_ckpt.drafting.others import UNKNOWN
from migrate_ckpt.errors import InvalidManifest
from migrate_ckpt.file_run import as_checkpoint, read_tensors
from migrate_ckpt.formats import open_container
from migrate_ckpt.formats.source import FileSource
from migrate_ckpt.manifest import Manifest, read_manifest
from migrate_ckpt.operations.paths import Path as KeyPath
from migrate_ckpt.operations.paths import PathLike
from migrate_ckpt.operations.sections import find_sections, own_keys, to_sections
from migrate_ckpt.sharded.index_file import SUFFIX
from migrate_ckpt.sharded.recognition import sharded_folder

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Side:
    """One of two things that are compared: its dense tensors by key, its other values, and all of it, if it is a file.

    Attributes:
        tensors: The dense tensors of the state dict.
        others: What else is in it; UNKNOWN where only the name is known.
        ckpt: The checkpoint.
        path: Where the state dict stands in it.
    """

    tensors: Mapping[str, torch.Tensor]
    others: Mapping[str, Any]
    ckpt: Any = None
    path: KeyPath | None = None

    @property
    def has_content(self) -> bool:
        is_known = not any(value is UNKNOWN for value in self.others.values())
        return is_known and not any(tensor.is_meta for tensor in self.tensors.values())

    @property
    def state_dict(self) -> dict[str, Any]:
        return {**self.tensors, **self.others}


@contextlib.contextmanager
def open_side(path: Path, section: PathLike | None) -> Iterator[Side]:
    """Open a file, an index, a folder of a sharded checkpoint, or a manifest."""
    if path.suffix == ".json" and not path.name.endswith(SUFFIX):
        yield _of_manifest(path, read_manifest(path))
        return
    sharded = sharded_folder(path)
    if sharded is not None:
        # Loading torch takes a second, which those who only import this need not wait.
        from migrate_ckpt.formats.tensors import MappedTensors

        yield _of_ckpt(sharded.kind.read(MappedTensors), section)
        return
    with FileSource(path) as source:
        yield _of_ckpt(as_checkpoint(read_tensors(open_container(source)).value), section)


def _of_ckpt(ckpt: Any, section: PathLike | None) -> Side:
    ((place, state_dict),) = find_sections(ckpt, to_sections(section))
    dense = {key: state_dict[key] for key in own_keys(state_dict) if is_dense(state_dict[key])}
    others = {key: state_dict[key] for key in own_keys(state_dict) if key not in dense}
    return Side(dense, others, ckpt, place)


def _of_manifest(path: Path, manifest: Manifest) -> Side:
    import torch

    tensors = {}
    for key, expected in manifest.tensors.items():
        sizes = [size for size in expected.shape if size is not None]
        dtype = getattr(torch, expected.dtype, None)
        if len(sizes) < len(expected.shape) or not isinstance(dtype, torch.dtype):
            raise InvalidManifest(
                f"The manifest {path.name} cannot be compared: of {key!r} it says {expected}, and it takes a size for "
                "each dimension and a dtype of torch.",
                path=path,
            )
        tensors[key] = torch.empty(sizes, dtype=dtype, device="meta")
    return Side(tensors, dict.fromkeys(manifest.values, UNKNOWN))

"""Manifests of checkpoints in files, and files held to a manifest; no tensor data is read."""

from __future__ import annotations

import os
from pathlib import Path

from migrate_ckpt.file_run import as_checkpoint
from migrate_ckpt.formats import open_container
from migrate_ckpt.formats.source import FileSource
from migrate_ckpt.manifest import Manifest
from migrate_ckpt.manifest_sources import manifest_of_section
from migrate_ckpt.operations.paths import PathLike
from migrate_ckpt.sharded.recognition import sharded_folder
from migrate_ckpt.verifying import Verdict


def manifest_of_file(path: str | os.PathLike[str], *, section: PathLike | None = None) -> Manifest:
    """Return the manifest of the state dict in a checkpoint's file; no tensor data is read.

    Args:
        path: The file.
        section: The path of the state dict in it; None is the model's, wherever that stands.

    Raises:
        OSError: The file cannot be opened.
        UnreadableCheckpoint: It is no checkpoint that is read here, or it is damaged.
        SectionNotFound: There is no such section; or which is the model's is not to be told.
    """
    # Loading torch takes a second, which those who have a manifest already need not wait.
    from migrate_ckpt.formats.tensors import MetaTensors

    sharded = sharded_folder(Path(path))
    if sharded is not None:
        return manifest_of_section(sharded.kind.read(MetaTensors), section)
    with FileSource(path) as source:
        container = open_container(source)
        ckpt = as_checkpoint(container.read(MetaTensors(container)).value)
        return manifest_of_section(ckpt, section)


def verify_file(
    path: str | os.PathLike[str], manifest: Manifest, *, section: PathLike | None = None
) -> Verdict:
    """Compare the state dict in a file with a manifest; no tensor data is read.

    Args:
        path: The file.
        manifest: What it should have.
        section: The path of the state dict in it; None is where the manifest says.

    Raises:
        OSError: The file cannot be opened.
        UnreadableCheckpoint: It is no checkpoint that is read here, or it is damaged.
        SectionNotFound: It has no such section; or which is the model's is not to be told.
    """
    found = manifest_of_file(path, section=manifest.section if section is None else section)
    return Verdict.of(manifest, found)

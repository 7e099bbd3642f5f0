"""Strip the prefix `model.` from the names of the weights.

Why: the network used to be the attribute `model` of the training module; now it is saved by itself.
Reference: `torch.nn.Module.state_dict` puts the attributes on the way before each key, and keeps a
version per module, under the same names, in the state dict's `_metadata`.
"""

from collections.abc import MutableMapping
from typing import Any

from migrate_ckpt import CkptType

PREFIX = "model."


def handle(ckpt: CkptType) -> CkptType:
    weights = ckpt.get("state_dict", {})
    renamed = {key.removeprefix(PREFIX): tensor for key, tensor in weights.items()}
    if len(renamed) < len(weights):
        raise ValueError(f"a weight is there both with and without the prefix {PREFIX!r}")
    replace_items(weights, renamed)

    versions = getattr(weights, "_metadata", {})
    replace_items(versions, {module_name(name): version for name, version in versions.items()})
    return ckpt


def module_name(name: str) -> str:
    """The module `model` itself becomes the root, whose name is empty."""
    return f"{name}.".removeprefix(PREFIX).removesuffix(".")


def replace_items(mapping: MutableMapping[str, Any], items: dict[str, Any]) -> None:
    """In place: a new mapping would lose what hangs on the old one, such as `_metadata`."""
    mapping.clear()
    mapping.update(items)

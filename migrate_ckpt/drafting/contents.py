"""The content of a state dict's tensors, each looked at once, as far as it is asked for."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from migrate_ckpt.content_hashes import hash_whole, is_constant
from migrate_ckpt.drafting.makings import View
from migrate_ckpt.operations.moves import identity

if TYPE_CHECKING:
    import torch

Tensors: TypeAlias = "Mapping[str, torch.Tensor]"


class Content:
    """That of one side."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors
        self._hashes: dict[Hashable, int] = {}
        self._constant: dict[Hashable, bool] = {}

    def hash_of(self, key: str, view: View) -> int:
        tensor = self._tensors[key]
        asked = (identity(tensor), view)
        if asked not in self._hashes:
            self._hashes[asked] = hash_whole(view.of(tensor))
        return self._hashes[asked]

    def is_telling(self, key: str) -> bool:
        """Tell whether the content is more than one number, which many others may be, too."""
        asked = identity(self._tensors[key])
        if asked not in self._constant:
            self._constant[asked] = is_constant(self._tensors[key])
        return not self._constant[asked]

"""Builds of operations from names: what a template is put into while it is tried."""

from __future__ import annotations

from dataclasses import dataclass

from migrate_ckpt.drafting.templates import Names, template_over
from migrate_ckpt.drafting.trial import InPlace
from migrate_ckpt.operations.renaming import Rename
from migrate_ckpt.operations.reshaping import Concat, Split
from migrate_ckpt.operations.stacking import Stack, Unstack
from migrate_ckpt.operations.state_dict_operation import StateDictOperation
from migrate_ckpt.operations.transforming import Permute, Transpose


def permuting(dims: tuple[int, ...]) -> InPlace:
    if dims == (1, 0):
        return Transpose
    return lambda keys: Permute(keys, dims)


def renaming(names: Names) -> StateDictOperation:
    return Rename(((names.sources[0], names.targets[0]),))


@dataclass(frozen=True)
class Splitting:
    sizes: tuple[int, ...] | None
    dim: int

    def __call__(self, names: Names) -> StateDictOperation:
        return Split(names.sources[0], names.targets, sizes=self.sizes, dim=self.dim)


@dataclass(frozen=True)
class Joining:
    dim: int

    def __call__(self, names: Names) -> StateDictOperation:
        return Concat(names.sources, names.targets[0], dim=self.dim)


@dataclass(frozen=True)
class Stacking:
    dim: int

    def __call__(self, names: Names) -> StateDictOperation:
        template = template_over(names.sources)
        if template is None:
            raise ValueError("the parts are not counted")
        return Stack(template, names.targets[0], over="n", dim=self.dim)


@dataclass(frozen=True)
class Unstacking:
    template: str
    dim: int

    def __call__(self, names: Names) -> StateDictOperation:
        template = template_over(names.targets)
        if template is None:
            raise ValueError("the parts are not counted")
        return Unstack(names.sources[0], template, over="n", dim=self.dim)

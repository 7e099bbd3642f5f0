"""Verbs for migrations: each call makes an operation, to be called on a checkpoint or to be listed.

    operations = [strip_prefix("module"), rename("head.weight", "classifier.weight")]

Importing this package needs the standard library only; torch is loaded when a tensor is made.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from migrate_ckpt.operations.attention import merge_qkv as merge_qkv
    from migrate_ckpt.operations.attention import split_qkv as split_qkv
    from migrate_ckpt.operations.classes import rename_class as rename_class
    from migrate_ckpt.operations.contents import add as add
    from migrate_ckpt.operations.contents import drop as drop
    from migrate_ckpt.operations.normalising import normalise as normalise
    from migrate_ckpt.operations.operation import Operation as Operation
    from migrate_ckpt.operations.reindexing import reindex as reindex
    from migrate_ckpt.operations.renaming import add_prefix as add_prefix
    from migrate_ckpt.operations.renaming import rename as rename
    from migrate_ckpt.operations.renaming import strip_prefix as strip_prefix
    from migrate_ckpt.operations.requirements import requires_key as requires_key
    from migrate_ckpt.operations.requirements import requires_value as requires_value
    from migrate_ckpt.operations.reshaping import cast as cast
    from migrate_ckpt.operations.reshaping import concat as concat
    from migrate_ckpt.operations.reshaping import split as split
    from migrate_ckpt.operations.stacking import stack as stack
    from migrate_ckpt.operations.stacking import unstack as unstack
    from migrate_ckpt.operations.transforming import pad_rows as pad_rows
    from migrate_ckpt.operations.transforming import permute as permute
    from migrate_ckpt.operations.transforming import permute_rows as permute_rows
    from migrate_ckpt.operations.transforming import reshape as reshape
    from migrate_ckpt.operations.transforming import scale as scale
    from migrate_ckpt.operations.transforming import transpose as transpose
    from migrate_ckpt.operations.transforming import trim_rows as trim_rows
    from migrate_ckpt.operations.tying import tie as tie
    from migrate_ckpt.operations.tying import untie as untie
    from migrate_ckpt.operations.values import drop_value as drop_value
    from migrate_ckpt.operations.values import move as move
    from migrate_ckpt.operations.values import rename_value as rename_value
    from migrate_ckpt.operations.values import set_value as set_value
    from migrate_ckpt.operations.wrapping import unwrap as unwrap
    from migrate_ckpt.operations.wrapping import wrap as wrap
    from migrate_ckpt.optimizers.declaration import follow as follow

_MODULES = {
    "attention": ("merge_qkv", "split_qkv"),
    "classes": ("rename_class",),
    "contents": (
        "add",
        "drop",
    ),
    "normalising": ("normalise",),
    "operation": ("Operation",),
    "reindexing": ("reindex",),
    "renaming": (
        "add_prefix",
        "rename",
        "strip_prefix",
    ),
    "requirements": (
        "requires_key",
        "requires_value",
    ),
    "reshaping": (
        "cast",
        "concat",
        "split",
    ),
    "stacking": ("stack", "unstack"),
    "transforming": (
        "pad_rows",
        "permute",
        "permute_rows",
        "reshape",
        "scale",
        "transpose",
        "trim_rows",
    ),
    "tying": ("tie", "untie"),
    "values": (
        "drop_value",
        "move",
        "rename_value",
        "set_value",
    ),
    "wrapping": (
        "unwrap",
        "wrap",
    ),
    ".optimizers.declaration": ("follow",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

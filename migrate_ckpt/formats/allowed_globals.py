"""Refuses a file that names classes or functions which are not on a list.

What a file names is never imported here, but whoever loads the migrated file with `pickle` does import it. Where only
known things may pass, this is the place. What the reader answers itself with plain values and tensors needs no place
on the list.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from migrate_ckpt.errors import RefusedGlobals
from migrate_ckpt.formats.container import Contents
from migrate_ckpt.formats.storages import STORAGE_TYPES

_ANSWERED = frozenset(
    (
        "_codecs.encode",
        "collections.OrderedDict",
        "torch.Size",
        "torch.device",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
        *(
            f"{module}.{name}"
            for module in ("builtins", "__builtin__")
            for name in ("bytearray", "bytes", "complex", "frozenset", "set")
        ),
        *STORAGE_TYPES,
    )
)
_DTYPE = re.compile(
    r"torch\.(bool|bfloat16|(complex|float|int|uint|qint|quint|bits)\d+(x\d+)?(_e\d+m\d+(fn|fnu|fnuz)?)?(_x\d+)?)"
)


def refuse_globals(contents: Contents, allowed: Sequence[str] | None) -> None:
    """Refuse contents that name anything but `allowed`: paths or patterns such as `argparse.Namespace`, `numpy.*`.

    None allows everything. What is reached through another global must be listed by its path: whoever loads the file
    gets it by attributes, and by those of a module anything that the module has imported.

    Raises:
        RefusedGlobals: Names all that are not allowed.
    """
    if allowed is None:
        return
    refused = tuple(
        path
        for path in contents.globals
        if path not in allowed and (path in contents.nested or not _is_allowed(path, allowed))
    )
    if refused:
        shown = ", ".join(refused[:10]) + (
            f" and {len(refused) - 10} more" if len(refused) > 10 else ""
        )
        raise RefusedGlobals(f"the file names what is not allowed here: {shown}", globals=refused)


def _is_allowed(path: str, allowed: Sequence[str]) -> bool:
    if path in _ANSWERED or _DTYPE.fullmatch(path):
        return True
    return any(fnmatchcase(path, pattern) for pattern in allowed)


def read_allowed_globals(text: str) -> tuple[str, ...]:
    """The paths and patterns of a list: one a line, empty lines and what follows `#` do not count."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return tuple(line for line in lines if line)

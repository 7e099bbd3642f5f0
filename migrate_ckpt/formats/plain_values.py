"""Calls in a pickle that are answered with a plain value: how picklers write bytes, sets and complex numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from migrate_ckpt.formats.keys import KeyCheck

NOT_FOLDED: Any = object()
"""What a fold gives for arguments that it does not answer."""

Fold = Callable[..., Any]

_LATIN_1 = ("latin1", "latin-1")


def plain_folds(keys: KeyCheck) -> dict[tuple[str, str], Fold]:
    """The calls by module and name. What goes into a set is checked by `keys` first."""
    builtins = {
        "bytes": lambda *args: NOT_FOLDED if args else b"",
        "bytearray": _bytearray,
        "set": _members(set, keys),
        "frozenset": _members(frozenset, keys),
        "complex": _complex,
    }
    return {
        ("_codecs", "encode"): _encode,
        **{
            (module, name): fold
            for module in ("builtins", "__builtin__")
            for name, fold in builtins.items()
        },
    }


def _encode(*args: Any) -> Any:
    """Bytes, as protocol 2 writes them: a text with a character for each."""
    if len(args) == 2 and type(args[0]) is type(args[1]) is str and args[1] in _LATIN_1:
        return args[0].encode("latin-1")
    return NOT_FOLDED


def _bytearray(*args: Any) -> Any:
    if not args:
        return bytearray()
    if len(args) == 1 and type(args[0]) is bytes:
        return bytearray(args[0])
    made = _encode(*args)
    return made if made is NOT_FOLDED else bytearray(made)


def _members(kind: type, keys: KeyCheck) -> Fold:
    def fold(*args: Any) -> Any:
        if not args:
            return kind()
        if len(args) != 1 or type(args[0]) is not list:
            return NOT_FOLDED
        keys.check(args[0])
        return kind(args[0])

    return fold


def _complex(*args: Any) -> Any:
    return (
        complex(*args)
        if len(args) == 2 and all(type(part) is float for part in args)
        else NOT_FOLDED
    )

"""Calls in a pickle that are answered with a plain value: how picklers write bytes, sets and complex numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

NOT_FOLDED: Any = object()
"""What a fold gives for arguments that it does not answer."""

Fold = Callable[..., Any]


def _bytes(*args: Any) -> Any:
    if not args:
        return b""
    if len(args) == 2 and type(args[0]) is str and args[1] in ("latin1", "latin-1"):
        return args[0].encode("latin-1")
    return NOT_FOLDED


def _bytearray(*args: Any) -> Any:
    if len(args) == 1 and type(args[0]) is bytes:
        return bytearray(args[0])
    made = _bytes(*args)
    return made if made is NOT_FOLDED else bytearray(made)


def _members(kind: type) -> Fold:
    def fold(*args: Any) -> Any:
        return (
            kind(*args)
            if not args or (len(args) == 1 and type(args[0]) in (list, tuple))
            else NOT_FOLDED
        )

    return fold


def _complex(*args: Any) -> Any:
    return (
        complex(*args)
        if len(args) == 2 and all(type(part) is float for part in args)
        else NOT_FOLDED
    )


PLAIN_FOLDS: dict[tuple[str, str], Fold] = {
    ("_codecs", "encode"): lambda *args: _bytes(*args) if len(args) == 2 else NOT_FOLDED
}
for _module in ("builtins", "__builtin__"):
    PLAIN_FOLDS[_module, "bytes"] = lambda *args: NOT_FOLDED if args else b""
    PLAIN_FOLDS[_module, "bytearray"] = _bytearray
    PLAIN_FOLDS[_module, "set"] = _members(set)
    PLAIN_FOLDS[_module, "frozenset"] = _members(frozenset)
    PLAIN_FOLDS[_module, "complex"] = _complex

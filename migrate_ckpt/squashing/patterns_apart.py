"""Tells whether two keys or templates can mean one key."""

from __future__ import annotations

import re

from migrate_ckpt.operations.patterns import KeyPattern, compiled, placeholders

_PLACEHOLDER = re.compile(r"\{[A-Za-z_]\w*(?::int)?\}")


def may_meet(one: KeyPattern, other: KeyPattern) -> bool:
    """Tell whether there may be a key that both mean; of a regex it is not known, so there may."""
    if not isinstance(one, str) or not isinstance(other, str):
        return True
    names, others = one.split("."), other.split(".")
    return len(names) == len(others) and all(map(_may_be_one, names, others))


def _may_be_one(name: str, other: str) -> bool:
    """Tell whether two components may be one: a placeholder stands for anything between what stands around it."""
    if not _PLACEHOLDER.search(name):
        name, other = other, name
    if not _PLACEHOLDER.search(name):
        return name == other
    if not _PLACEHOLDER.search(other):
        return compiled(name).fullmatch(other) is not None
    return True


def is_same(one: KeyPattern, other: KeyPattern) -> bool:
    """Tell whether two patterns mean the same keys: the names of their placeholders do not matter."""
    return numbered(one) == numbered(other)


def numbered(pattern: KeyPattern) -> object:
    """Return a pattern with numbers for the names of its placeholders; what means the same keys has the same."""
    if not isinstance(pattern, str):
        return pattern
    for number, name in enumerate(placeholders(pattern)):
        pattern = re.sub(rf"\{{{name}(:int)?\}}", rf"{{p{number}\1}}", pattern)
    return pattern


def renamed_as(template: str, own: KeyPattern, other: KeyPattern) -> str:
    """Return a template with placeholders called as in another pattern, which means the same keys as its own does."""
    names = dict(zip(placeholders(own), placeholders(other), strict=True))
    return re.sub(r"\{(\w+)(:int)?\}", lambda m: f"{{{names[m[1]]}{m[2] or ''}}}", template)

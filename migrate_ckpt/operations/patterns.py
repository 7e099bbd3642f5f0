"""Ways to say which keys are meant: one key, a template such as `layers.{i}.weight`, or an anchored regex."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import TypeAlias

KeyPattern: TypeAlias = str | re.Pattern[str]
"""A key or template as a text, or a compiled regex, which must match the whole key.

In a template `{name}` stands for one component of the key (what is between two dots), and `{name:int}` for a
whole number in it.
"""

_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)(:int)?\}")


def match(pattern: KeyPattern, key: str) -> dict[str, str] | None:
    """Return what the placeholders stand for in a key, or None if it is not meant."""
    found = compiled(pattern).fullmatch(key)
    return None if found is None else found.groupdict()


@functools.lru_cache(maxsize=1024)
def compiled(pattern: KeyPattern) -> re.Pattern[str]:
    """Return a pattern as a regex to match whole keys with.

    Raises:
        ValueError: A placeholder is there twice, or a brace is no part of one.
    """
    if isinstance(pattern, re.Pattern):
        return pattern
    parts = []
    end = 0
    for found in _PLACEHOLDER.finditer(pattern):
        parts.append(re.escape(pattern[end : found.start()]))
        parts.append(f"(?P<{found[1]}>{'0|[1-9][0-9]*' if found[2] else '[^.]+'})")
        end = found.end()
    parts.append(re.escape(pattern[end:]))
    names = placeholders(pattern)
    if len(set(names)) < len(names):
        raise ValueError(f"The template {pattern!r} has a placeholder twice.")
    if "{" in _PLACEHOLDER.sub("", pattern) or "}" in _PLACEHOLDER.sub("", pattern):
        raise ValueError(
            f"The template {pattern!r} has a brace that belongs to no placeholder such as {{i}} or "
            "{i:int}. For a key with braces in it give a compiled regex."
        )
    return re.compile("".join(parts))


def placeholders(template: KeyPattern) -> tuple[str, ...]:
    """Return the names of a template's placeholders, or of a regex's named groups."""
    if isinstance(template, re.Pattern):
        return tuple(template.groupindex)
    return tuple(found[1] for found in _PLACEHOLDER.finditer(template))


def is_exact(pattern: KeyPattern) -> bool:
    """Tell whether it can mean one key only."""
    return isinstance(pattern, str) and not placeholders(pattern)


def fill(template: str, values: Mapping[str, str]) -> str:
    """Return a template with its placeholders replaced."""
    return _PLACEHOLDER.sub(lambda found: values[found[1]], template)


def typed_as(template: str, other: str) -> str:
    """Return a template whose placeholders stand for whole numbers where those of another do."""
    written = {found[1]: found[0] for found in _PLACEHOLDER.finditer(other)}
    return fill(template, written)


def check_same_placeholders(*templates: str) -> None:
    """Refuse templates that do not have the same placeholders, each once.

    Raises:
        ValueError: They do not; then what one stands for cannot be told from the other.
    """
    for template in templates:
        compiled(template)
        if set(placeholders(template)) != set(placeholders(templates[0])):
            raise ValueError(
                f"The templates {templates[0]!r} and {template!r} must have the same placeholders."
            )

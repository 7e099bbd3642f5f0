"""Compares versions. The folder of an adopted index gets this function as text, and so it needs nothing but `re`."""

from __future__ import annotations

import re


def comparable(version: str) -> tuple[list[int], bool]:
    """The numbers without zeros at the end, and whether it is final: 2.0.0rc1 comes before 2.0, as in `packaging`."""
    version = version.partition("+")[0]
    numbers = re.match(r"[0-9]+(?:[.][0-9]+)*", version)
    parts = [int(part) for part in numbers[0].split(".")] if numbers else [0]
    while parts and parts[-1] == 0:
        parts.pop()
    is_final = not re.search(r"(?:a|b|c|rc|alpha|beta|pre|preview|dev)[-_.]?[0-9]*", version)
    return parts, is_final

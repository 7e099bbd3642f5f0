"""What the files of a set are called: what they were called before, or a name that tells their state."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable

from migrate_ckpt.history import History

_TAG = re.compile(r"\.m[0-9a-f]{8}(?=\.[^.]+$)")


class FreeNames:
    """Names for new files: their own, or where something that stays for now has it, one that tells their state."""

    def __init__(self, taken: Iterable[str], history: History) -> None:
        self._taken = set(taken)
        self._history = history

    def of(self, name: str) -> str:
        """Return a name for a file that would be called so."""
        free = name
        for attempt in itertools.count():
            if free not in self._taken:
                break
            free = _tagged(name, tag_of(self._history, attempt))
        self._taken.add(free)
        return free


def tag_of(history: History, attempt: int = 0) -> str:
    """Return what tells the files of one state of a checkpoint from those of another."""
    records = [[record.name, record.set, record.digest] for record in history.records]
    text = json.dumps([*records, attempt] if attempt else records)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def earlier_names(name: str, history: History) -> set[str]:
    """Return what a file may have been called before it got the name that it has at some point of a history."""
    records = history.records
    tags = [tag_of(History(records[:count])) for count in range(1, len(records) + 1)]
    names = [_tagged(name, tag) for tag in tags]
    if name not in names:
        return set()
    return {_TAG.sub("", name), *names[: names.index(name)]}


def _tagged(name: str, tag: str) -> str:
    stem, dot, suffix = _TAG.sub("", name).rpartition(".")
    return f"{stem}.m{tag}{dot}{suffix}"

"""What `inspect` tells of a file: its format, history and outline, and what a careless load of it would run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from migrate_ckpt.errors import InvalidHistory
from migrate_ckpt.foreign import ForeignGlobal, ForeignObject, global_path
from migrate_ckpt.history import History, read_history
from migrate_ckpt.outline import MAX_ENTRIES, OutlineEntry, outline

if TYPE_CHECKING:
    from migrate_ckpt.formats.container import Contents


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is in a file.

    Attributes:
        format: Name of the container.
        size: Bytes of the file.
        protocol: Protocol of its pickle.
        history: The migrations that it says it has had; None where it holds no usable history.
        history_error: Why not.
        entries: The outline, at most `outline.MAX_ENTRIES` of it.
        globals: Every class and function that the pickle names.
        calls: How often each is called or instantiated by a load that trusts the file.
        hidden_calls: The same for results that the pickle throws away again, which no pickler writes.
    """

    format: str
    size: int
    protocol: int
    history: History | None
    history_error: str | None
    entries: tuple[OutlineEntry, ...]
    globals: tuple[str, ...]
    calls: dict[str, int]
    hidden_calls: dict[str, int]

    @classmethod
    def of(cls, format_name: str, size: int, contents: Contents) -> Inspection:
        """Look at what was read with outlines in place of tensors."""
        history, history_error = _history_of(contents.value)
        entries = tuple(outline(contents.value, max_entries=MAX_ENTRIES))
        return cls(
            format_name,
            size,
            contents.protocol,
            history,
            history_error,
            entries,
            contents.globals,
            _count(contents.calls),
            _count(contents.hidden_calls),
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": self.format,
            "size": self.size,
            "protocol": self.protocol,
            "history": None if self.history is None else list(self.history.names),
            "history_error": self.history_error,
            "globals": list(self.globals),
            "calls": self.calls,
            "hidden_calls": self.hidden_calls,
            "outline": [entry.to_dict() for entry in self.entries],
            "outline_truncated": len(self.entries) == MAX_ENTRIES,
        }


def _history_of(value: object) -> tuple[History | None, str | None]:
    if not hasattr(type(value), "keys"):
        return None, None
    try:
        return read_history(value), None  # type: ignore[arg-type]
    except InvalidHistory as error:
        return None, str(error)


def _count(objects: list[ForeignObject]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for obj in objects:
        made = obj.__recipe__
        # A setter is called, too, with the object and its state.
        for function in (made.function, made.setter):
            if function is not None:
                path = _path(function)
                counts[path] = counts.get(path, 0) + 1
    return counts


def _path(function: Any) -> str:
    return global_path(function) if isinstance(function, ForeignGlobal) else "the result of a call"

"""The draft of a migration: its operations, how sure they are, and what a person has to decide."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from migrate_ckpt.drafting.braces import Group
from migrate_ckpt.drafting.trial import Drafted
from migrate_ckpt.outline import printable
from migrate_ckpt.python_text import LINE_LENGTH, import_lines, in_docstring, lay_out

MAX_LISTED = 20
"""How many keys that are left to decide are written into a file for one question."""


@dataclass(frozen=True, slots=True)
class Draft:
    """What comparing two checkpoints gave.

    Attributes:
        drafted: The operations in their order.
        kept: How many tensors have the same name and content in both, or the same form where no content is known.
        has_content: Whether there was content to compare, and not manifests only.
        undecided: Groups of old keys, as they are called after the operations, and new ones, of which nobody can tell
            which became which.
        unknown: New keys that nothing old makes, and that are not one number.
        changed: Keys whose content is another one, as after more training.
        notes: What else is not written, a sentence each.
        differing: Keys of which the operations do not make what is in the new checkpoint.
    """

    drafted: tuple[Drafted, ...]
    kept: int
    has_content: bool
    undecided: tuple[Group, ...] = ()
    unknown: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    differing: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left for a person to decide, and no key is other than it should be for no known reason."""
        return not self.undecided and not self.unknown and not self.unexplained

    @property
    def unexplained(self) -> tuple[str, ...]:
        """The keys that differ although nothing is known of them that says why."""
        known = {*self.changed, *self.unknown}
        known |= {key for group in self.undecided for keys in group for key in keys}
        return tuple(key for key in self.differing if key not in known)

    @property
    def is_proved(self) -> bool:
        """Whether the operations make the new state dict of the old one, bit by bit."""
        return self.has_content and not self.differing

    @property
    def likely(self) -> tuple[str, ...]:
        """The old keys, and the operations on values, that are as they are by names and shapes alone."""
        return tuple(dict.fromkeys(key for each in self.drafted for key in each.likely))

    def source(self, title: str, compared: Sequence[str]) -> str:
        """Return the text of a migration file; `compared` names the two files.

        Whatever the checkpoints' keys and values hold, it stays text: in comments, or in the literals of Python.
        """
        return "\n".join(self._lines(title, compared)) + "\n"

    def _lines(self, title: str, compared: Sequence[str]) -> Iterator[str]:
        yield f'"""{in_docstring(title)}.'
        yield ""
        yield "Why: what changed in the code, and where to read about it."
        yield f"Written by comparing {' with '.join(map(in_docstring, compared))}."
        yield '"""'
        yield ""
        calls = [each.operation.written() for each in self.drafted]
        if any("re.compile(" in call for call in calls):
            yield "import re"
            yield ""
        verbs = sorted({each.operation.verb for each in self.drafted})
        if verbs:
            yield from import_lines(verbs)
            yield ""
        if not self.drafted:
            yield "operations = []"
        else:
            yield "operations = ["
            for each, call in zip(self.drafted, calls, strict=True):
                yield from (f"    # {line}" for line in _doubt(each))
                yield f"    {lay_out(call, 4)},"
            yield "]"
        yield from (f"# {line}".rstrip() for line in self._open_questions())

    def _open_questions(self) -> Iterator[str]:
        if self.undecided:
            yield ""
            yield "TODO: which of these became which cannot be told:"
            for olds, news in self.undecided:
                yield from _listed("  ", olds)
                yield from _listed("  -> ", news)
        if self.unknown:
            yield ""
            yield "TODO: nothing old makes these; `add` puts them in:"
            yield from (f"  {printable(key)}" for key in self.unknown)
        if self.unexplained:
            yield ""
            yield "TODO: what the operations make of these is not what is in the new file:"
            yield from _listed("  ", self.unexplained)

    def to_dict(self) -> dict[str, Any]:
        return {
            "operations": [
                {"operation": d.operation.written(), "keys": d.count, "likely": list(d.likely)}
                for d in self.drafted
            ],
            "kept": self.kept,
            "complete": self.is_complete,
            "proved": self.is_proved,
            "undecided": [{"old": list(olds), "new": list(news)} for olds, news in self.undecided],
            "unknown": list(self.unknown),
            "changed": list(self.changed),
            "notes": list(self.notes),
            "differing": list(self.differing),
        }


def _listed(start: str, keys: Sequence[str]) -> Iterator[str]:
    """Yield keys in lines, the first of very many."""
    more = f" and {len(keys) - MAX_LISTED} more" if len(keys) > MAX_LISTED else ""
    # A key may hold anything, and stands in a comment.
    text = start + ", ".join(map(printable, keys[:MAX_LISTED])) + more
    options = {"subsequent_indent": "     ", "break_long_words": False, "break_on_hyphens": False}
    yield from textwrap.wrap(text, LINE_LENGTH - 2, **options)  # type: ignore[arg-type]


def _doubt(each: Drafted) -> Iterator[str]:
    if not each.likely:
        return
    if each.count == 1 and re.match(r"\w+\(", each.likely[0]):
        yield "Likely, as nothing else has the value."
    elif len(each.likely) >= each.count:
        yield "Likely, by names and shapes."
    else:
        yield f"Likely, by names and shapes, for {len(each.likely)} of {each.count} keys."

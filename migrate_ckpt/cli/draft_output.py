"""How the command tells a person what a draft of a migration is made of, and what is left to decide."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from migrate_ckpt.cli.output import Line, shown
from migrate_ckpt.drafting.draft import Draft
from migrate_ckpt.operations.moves import list_keys
from migrate_ckpt.outline import printable


def describe_draft(path: Path | None, draft: Draft) -> Iterator[Line]:
    """Yield the lines of a summary: what was written, if anything, how sure it is, and what is not."""
    kept = f"{_counted(draft.kept, 'tensor')} as before"
    if path is None:
        yield Line(f"nothing was written: no operation was found, {kept}")
    else:
        yield Line(f"{shown(path)}: {_counted(len(draft.drafted), 'operation')}, {kept}")
    if draft.is_proved:
        yield Line("  proved: they make NEW's state dict of OLD's, bit by bit", "green")
    for text, style in _doubts(draft):
        yield Line(f"  {printable(text)}", style)
    if path is not None and not draft.is_complete:
        yield Line("  look for TODO in the file", "bold yellow")


def _doubts(draft: Draft) -> Iterator[tuple[str, str]]:
    if draft.likely:
        yield f"likely only, marked in the file: {list_keys(draft.likely)}", "yellow"
    for olds, news in draft.undecided:
        yield f"not decided: {list_keys(olds)} -> {list_keys(news)}", "bold yellow"
    if draft.unknown:
        yield f"made of nothing old: {list_keys(draft.unknown)}", "bold yellow"
    if draft.changed:
        yield f"other content under one name, as after training: {list_keys(draft.changed)}", ""
    if draft.unexplained:
        yield f"not as in NEW: {list_keys(draft.unexplained)}", "bold yellow"
    yield from ((sentence, "") for sentence in draft.notes)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"

"""How the command tells a plan to a person: a line, or with the changes of each step, in colour at a terminal."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from migrate_ckpt.changes import Change, ChangeKind
from migrate_ckpt.cli.output import Line, counted, shown
from migrate_ckpt.outline import OutlineEntry, printable
from migrate_ckpt.plan import Plan, State, Step

MAX_LINES_OF_A_KIND = 12
_STATES: tuple[State, ...] = (
    "applied",
    "pending",
    "missed",
    "unknown",
    "changed",
    "replaced",
)
_MARKS: dict[ChangeKind, tuple[str, str]] = {
    "removed": ("-", "red"),
    "changed": ("~", "yellow"),
    "renamed": ("→", "cyan"),
    "added": ("+", "green"),
}
_PREFIXES = ("", "K", "M", "G", "T")


def describe_plan(source: Path, plan: Plan, *, verbose: bool) -> list[Line]:
    """One line, or for each migration another one, and below it what it would change."""
    counts = {state: len(plan.names(state)) for state in _STATES}
    states = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    head = f"{shown(source)}: {counted(len(plan.to_run))} to run ({states or 'the set is empty'})"
    if not verbose:
        return [Line(head)]
    width = max((len(step.name) for step in plan.steps), default=0)
    return [Line(head), *(line for step in plan.steps for line in _describe_step(step, width))]


def _describe_step(step: Step, width: int) -> Iterator[Line]:
    mark = ">" if step.will_run else " "
    text = f"  {mark} {step.state:<8} {step.name:<{width}}  {step.title}".rstrip()
    yield Line(text, "bold" if step.will_run else "dim")
    if step.preview is None:
        return
    for sentence in step.preview.warnings:
        yield Line(f"      ! {printable(sentence)}", "yellow")
    if step.preview.error is not None:
        yield Line(f"      ! {printable(str(step.preview.error['message']))}", "bold red")
    elif step.preview.changes is None:
        yield Line("      ? unknown, because of the failure before it", "dim")
    elif not step.preview.changes:
        yield Line("      no change in keys, shapes or values", "dim")
    else:
        counts = step.preview.counts or {}
        for kind in _MARKS:
            yield from _describe_kind(kind, step.preview.changes, counts.get(kind, 0))


def _describe_kind(kind: ChangeKind, changes: Sequence[Change], count: int) -> Iterator[Line]:
    """A line for each change, or for all that differ in the numbers of their layers only."""
    mark, style = _MARKS[kind]
    alike: dict[str, list[Change]] = {}
    for change in changes:
        if change.kind == kind:
            alike.setdefault(_describe(change, _numberless_path), []).append(change)
    # One more line takes no more room than to say that there is one more.
    shown_lines = len(alike) if len(alike) <= MAX_LINES_OF_A_KIND + 1 else MAX_LINES_OF_A_KIND
    left = count
    for text, same in list(alike.items())[:shown_lines]:
        left -= len(same)
        many = f"{len(same)} x {text}" if len(same) > 1 else _describe(same[0], _path)
        yield Line(f"      {mark} {many}", style)
    if left:
        yield Line(f"      {mark} and {left:,} more {kind}", style)


def _describe(change: Change, path: Callable[[OutlineEntry], str]) -> str:
    before, after = change.before, change.after
    if before is None or after is None:
        entry = after or before
        assert entry is not None
        return f"{path(entry)}: {_value(entry)}"
    if change.kind == "renamed":
        return f"{path(before)} → {path(after)}: {_value(after)}"
    if _value(before) == _value(after):
        return f"{path(after)}: {_value(after)}, other values"
    return f"{path(after)}: {_value(before)} → {_value(after)}"


def _path(entry: OutlineEntry) -> str:
    return " / ".join(entry.path) or "the whole checkpoint"


def _numberless_path(entry: OutlineEntry) -> str:
    return re.sub(r"\d+", "{i}", _path(entry))


def _value(entry: OutlineEntry) -> str:
    if entry.shape is not None:
        return f"{entry.dtype} {list(entry.shape)}, {_size(entry.nbytes or 0)}"
    return f"{entry.kind} {entry.text or ''}".rstrip()


def _size(count: int) -> str:
    """A number of bytes in powers of 1024, with three digits."""
    value, prefix = float(count), 0
    while value >= 1000 and prefix < len(_PREFIXES) - 1:
        value, prefix = value / 1024, prefix + 1
    return f"{count} B" if not prefix else f"{value:.3g} {_PREFIXES[prefix]}iB"

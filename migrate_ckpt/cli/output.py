"""How the command tells a report, an inspection and an error to a person, and prints lines in colour at a terminal."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from migrate_ckpt.errors import MigrateCkptError, MigrationFailed
from migrate_ckpt.inspection import Inspection
from migrate_ckpt.outline import OutlineEntry, printable
from migrate_ckpt.report import Report

MAX_OUTLINE_LINES = 200


def print_json(data: object) -> None:
    print(json.dumps(data, indent=2, allow_nan=False))


class Line(NamedTuple):
    """A line of text and how it looks, in the words of rich."""

    text: str
    style: str = ""


def print_lines(lines: Iterable[Line]) -> None:
    """Print lines, in colour where a person sees them and `NO_COLOR` is not set."""
    if not (sys.stdout.isatty() or os.environ.get("FORCE_COLOR")):
        for line in lines:
            print(line.text)
        return
    # Loading it takes longer than most of what the command does for a program that reads its output.
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False, soft_wrap=True)
    for line in lines:
        console.print(line.text, style=line.style or None)


def shown(path: Path) -> str:
    """A path as it may be printed: a file's name can hold anything."""
    return printable(str(path))


def error_data(error: Exception) -> dict[str, Any]:
    if isinstance(error, MigrateCkptError):
        return error.to_dict()
    return {"error_type": "os_error", "message": str(error), "retryable": False}


def describe_report(source: Path, target: Path, report: Report, *, is_one_of_many: bool) -> str:
    """What ran, what did not and why; of many files, how much ran."""
    where = shown(source) if source == target else f"{shown(source)} -> {shown(target)}"
    titles = {step.name: step.title for step in report.plan.steps}
    lines = [
        f"{where}: {counted(len(report.ran))} ran" if report.ran else f"{where}: nothing to run"
    ]
    if not is_one_of_many:
        lines += [f"  {name}  {titles[name]}".rstrip() for name in report.ran]
        if report.optimizer_followed:
            lines.append(f"  optimizer followed: {', '.join(report.optimizer_followed)}")
    lines += [f"  warning: {sentence}" for sentence in report.warnings]
    if report.pending:
        lines.append(f"  still pending: {', '.join(report.pending)}")
    return "\n".join(lines)


def describe_inspection(source: Path, inspection: Inspection) -> str:
    """Format, history, what it names, and the outline."""
    form = f"{shown(source)}: {inspection.format}, {inspection.size:,} bytes"
    if "safetensors" not in inspection.format:
        form += f", pickle protocol {inspection.protocol}"
    lines = [form]
    if inspection.history_error:
        lines.append(f"history: unusable: {inspection.history_error}")
    else:
        names = inspection.history.names if inspection.history else ()
        lines.append(f"history: {', '.join(names) or 'none'}")
    for title, counts in (("calls", inspection.calls), ("hidden calls", inspection.hidden_calls)):
        if counts:
            lines.append(f"{title} that a load which trusts the file would make:")
            lines += [f"  {count:>6} x {path}" for path, count in counts.items()]
    only_named = [path for path in inspection.globals if path not in inspection.calls]
    if only_named:
        lines.append(f"also names: {', '.join(only_named)}")
    lines.append("outline:")
    lines += [f"  {_describe_entry(entry)}" for entry in inspection.entries[:MAX_OUTLINE_LINES]]
    if len(inspection.entries) > MAX_OUTLINE_LINES:
        lines.append(f"  and {len(inspection.entries) - MAX_OUTLINE_LINES} more (--json has all)")
    return "\n".join(lines)


def describe_error(error: Exception, source: Path | None = None) -> str:
    """What failed, why, and what to do; for a failed migration also what it stood on."""
    kind = error.error_type if isinstance(error, MigrateCkptError) else "error"
    where = f"{shown(source)}: " if source else ""
    lines = [f"migrate-ckpt: {where}{kind}: {error}"]
    if isinstance(error, MigrationFailed) and error.report.ran:
        lines.append(f"  before it ran: {', '.join(error.report.ran)}; nothing was written")
    return "\n".join(lines)


def counted(count: int) -> str:
    return f"{count} migration" if count == 1 else f"{count} migrations"


def _describe_entry(entry: OutlineEntry) -> str:
    path = " / ".join(entry.path)
    if entry.shape is not None:
        return f"{path}: {entry.dtype} {list(entry.shape)}"
    return f"{path}: {entry.kind} {entry.text or ''}".rstrip()

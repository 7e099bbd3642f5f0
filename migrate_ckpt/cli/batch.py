"""One command on many files: each is tried, what came of it is said, and at the end all of it is counted."""

from __future__ import annotations

import json
import signal
import sys
import threading
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from migrate_ckpt.cli.exit_codes import DONE, INTERRUPTED, exit_code_of, refuse_usage
from migrate_ckpt.cli.output import Line, describe_error, error_data, print_json, print_lines
from migrate_ckpt.cli.progress import Progress, show_progress
from migrate_ckpt.cli.sources import SourceFile
from migrate_ckpt.errors import FolderError, MigrateCkptError, UnknownMigration
from migrate_ckpt.formats.pieces import Pieces, replace_file


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one file: a word that is counted, lines for people, data for programs."""

    status: str
    lines: Sequence[Line]
    data: dict[str, Any] = field(default_factory=dict)
    code: int = DONE
    is_final: bool = False
    """Whether it would be the same for every file after it."""


Act = Callable[[SourceFile, Progress], Outcome]

FAILED = "failed"


class Batch:
    """The outcomes so far."""

    def __init__(self, options: Namespace, count: int, also: Mapping[str, Any]) -> None:
        self._options = options
        self._count = count
        self._also = also
        self._outcomes: list[tuple[Path, Outcome]] = []
        self._interrupted = False

    def add(self, source: Path, outcome: Outcome) -> None:
        self._outcomes.append((source, outcome))

    def interrupt(self) -> None:
        self._interrupted = True

    @property
    def exit_code(self) -> int:
        """That of the gravest outcome."""
        if self._interrupted:
            return INTERRUPTED
        return max((outcome.code for _, outcome in self._outcomes), default=DONE)

    @property
    def summary(self) -> str:
        counts = self._counts()
        left = self._count - len(self._outcomes)
        parts = [f"{count} {status}" for status, count in counts.items()]
        parts += [f"{left} not done"] if left else []
        return f"{self._count} files: {', '.join(parts)}"

    def to_dict(self) -> dict[str, Any]:
        return {
            **self._also,
            "files": [
                {"source": str(source), "status": outcome.status, **outcome.data}
                for source, outcome in self._outcomes
            ],
            "counts": self._counts(),
            "not_done": self._count - len(self._outcomes),
            "interrupted": self._interrupted,
            "exit_code": self.exit_code,
        }

    def finish(self) -> int:
        """Say what was done, and write the report that was asked for."""
        if self._options.json:
            print_json(self.to_dict())
        elif self._count > 1 and not self._interrupted:
            print(self.summary)
        if self._interrupted:
            # With one file there is nothing to say but that.
            what = f"interrupted; {self.summary}" if self._count > 1 else "interrupted"
            print(what, file=sys.stderr)
        if self._options.report is not None:
            write_json(self._options.report, self.to_dict())
        return self.exit_code

    def _counts(self) -> dict[str, int]:
        return dict(Counter(outcome.status for _, outcome in self._outcomes))


def act_on_each(
    options: Namespace,
    sources: Sequence[SourceFile],
    act: Act,
    *,
    also: Mapping[str, Any] | None = None,
) -> int:
    """Act on each source and go on after a failure, unless it is one of the folder; gives the exit code.

    `also` is what JSON and the report say besides. An interrupt ends it with what has been done until then.
    """
    if options.report is not None and not options.report.parent.is_dir():
        refuse_usage(f"the folder of the report {str(options.report)!r} does not exist")
    batch = Batch(options, len(sources), also or {})
    try:
        with _ended_in_order_by_sigterm(), show_progress(len(sources)) as progress:
            for source in sources:
                progress.begin(source.path)
                outcome = _try(act, source, progress)
                batch.add(source.path, outcome)
                _say(outcome, progress, is_json=options.json)
                progress.advance()
                if outcome.is_final:
                    break
    except KeyboardInterrupt:
        batch.interrupt()
    return batch.finish()


@contextmanager
def _ended_in_order_by_sigterm() -> Iterator[None]:
    """What a batch system sends before it kills ends the work as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _try(act: Act, source: SourceFile, progress: Progress) -> Outcome:
    try:
        return act(source, progress)
    except (MigrateCkptError, OSError) as error:
        lines = [Line(describe_error(error, source.path))]
        data = {"error": error_data(error)}
        is_final = isinstance(error, (FolderError, UnknownMigration))
        return Outcome(FAILED, lines, data, exit_code_of(error), is_final)


def _say(outcome: Outcome, progress: Progress, *, is_json: bool) -> None:
    if outcome.status == FAILED:
        with progress.paused():
            for line in outcome.lines:
                print(line.text, file=sys.stderr)
    elif not is_json:
        with progress.paused():
            print_lines(outcome.lines)


def write_json(path: Path, data: object) -> None:
    """Write a JSON file, which is there as a whole or not at all."""
    pieces = Pieces()
    pieces.add_bytes(json.dumps(data, indent=2, allow_nan=False).encode() + b"\n")
    replace_file(path, pieces, None)

"""How far a command has come, on standard error, for as long as somebody watches it there."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from migrate_ckpt.outline import printable

if TYPE_CHECKING:
    from rich.progress import Progress as Bar


class Progress:
    """What is shown of the work on several files; without a bar nothing is."""

    def __init__(self, bar: Bar | None, count: int) -> None:
        self._bar = bar
        self._task = None if bar is None else bar.add_task("", total=count)
        self._source = ""

    def begin(self, source: Path) -> None:
        self._source = printable(str(source))
        self._describe(self._source)

    def on_step(self, position: int, count: int, name: str) -> None:
        """Show which migration runs: the `on_step` of a run."""
        self._describe(f"{self._source}  {name} ({position} of {count})")

    def advance(self) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Take the bar away, so that lines can be printed."""
        if self._bar is not None:
            self._bar.stop()
        try:
            yield
        finally:
            if self._bar is not None:
                self._bar.start()

    def _describe(self, text: str) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=text)


@contextmanager
def show_progress(count: int) -> Iterator[Progress]:
    """Show a bar until the work is done, if standard error is a terminal; afterwards it is gone."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield Progress(None, count)
        return
    with _new_bar() as bar:
        yield Progress(bar, count)


def _new_bar() -> Bar:
    # Loading it takes longer than most of what the command does for a program that reads its output.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        MofNCompleteColumn(),
        BarColumn(bar_width=20),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
        console=Console(stderr=True),
        transient=True,
        # What the command prints goes to where it goes without a bar.
        redirect_stdout=False,
        redirect_stderr=False,
    )

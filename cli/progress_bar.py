"""Progress bars on stderr, for people who watch; nothing where stderr is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from dsv3export.progress import NoProgress, Progress, Unit

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import ProgressColumn, TaskID


@contextmanager
def progress_on_stderr(quiet: bool) -> Iterator[Progress]:
    """A bar, and notes, while the block runs; silent with `quiet` or where stderr is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield NoProgress()
        return
    bar = _Bar()
    try:
        yield bar
    finally:
        bar.close()


class _Bar:
    """Implements `Progress` with one rich bar per piece of work, each with its unit's columns and the time left."""

    def __init__(self) -> None:
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def start(self, title: str, total: int, unit: Unit) -> None:
        from rich.console import Console
        from rich.progress import Progress as RichProgress

        self.close()
        self._bar = RichProgress(*_columns(unit), console=Console(stderr=True))
        self._task = self._bar.add_task(title, total=total)
        self._bar.start()

    def advance(self, amount: int) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, amount)

    def finish(self) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._bar.tasks[0].total)
        self.close()

    def note(self, text: str) -> None:
        self.close()
        click.echo(text, err=True)

    def close(self) -> None:
        """Leaves the bar as it stands and gives the terminal back."""
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = None


def _columns(unit: Unit) -> tuple[ProgressColumn, ...]:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    amount: tuple[ProgressColumn, ...] = (MofNCompleteColumn(), TextColumn(unit))
    if unit == "bytes":
        amount = (DownloadColumn(binary_units=True), TransferSpeedColumn())
    return (TextColumn("{task.description}"), BarColumn(), *amount, TimeElapsedColumn(), TimeRemainingColumn())

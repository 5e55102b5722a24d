"""Progress over the runs of a study: a bar on a terminal, one line per run elsewhere; always on stderr."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from luthier.comparing.record import Record
from luthier.training.progress import clock


class Bar:
    """What a study's runner tells; the time left is that of the mean run."""

    def __init__(self, console: Console, total: int, bar: Progress | None) -> None:
        self.console, self.total, self.bar = console, total, bar
        self.task = bar.add_task("", total=total) if bar else None
        self.passed, self.made, self.begun = 0, 0, time.monotonic()

    def skip(self) -> None:
        """A run that was there."""
        self.passed += 1
        self._move("")

    def start(self, title: str) -> None:
        """A run begins."""
        self._move(title)

    def done(self, title: str, record: Record) -> None:
        """A run ended."""
        self._ended(f"{title}: {record.metric} {record.score:.4f}")

    def failed(self, title: str, reason: str) -> None:
        """A run failed."""
        self._ended(f"{title} failed: {reason}")

    def note(self, text: str) -> None:
        """Something to know of a run."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def wait(self, title: str) -> None:
        """Another process has what is left."""
        self._move(f"waiting for another process: {title}")

    def _ended(self, text: str) -> None:
        self.made += 1
        self.passed += 1
        left = clock((time.monotonic() - self.begun) / self.made * (self.total - self.passed))
        self.console.print(f"{self.passed}/{self.total}  {text}  {left} left", highlight=False, soft_wrap=True)
        self._move(f"{left} left")

    def _move(self, text: str) -> None:
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=self.passed, description=text)


class Noting(Bar):
    """What a worker's runner tells: notes, for somebody else to show."""

    def __init__(self, console: Console, total: int, bar: Progress | None) -> None:
        super().__init__(console, total, bar)
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@contextmanager
def shown(console: Console, total: int) -> Iterator[Bar]:
    """The progress of `total` runs."""
    if not console.is_terminal or console.quiet:
        yield Bar(console, total, None)
        return
    columns = [TextColumn("comparing"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}")]
    with Progress(*columns, console=console) as bar:
        yield Bar(console, total, bar)

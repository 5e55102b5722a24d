"""Long steps made visible: a bar on a terminal, a line elsewhere, always on stderr."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def step(label: str, show: bool, total: int = 0, done: Callable[[], int] = int) -> Iterator[None]:
    """Shows `label` while the body runs; with `total` bytes, `done()` is polled for the bar."""
    from rich.console import Console

    console = Console(file=sys.stderr)  # this stream, whatever a conversion redirects later
    if not show or not console.is_terminal:
        if show:
            console.print(label, highlight=False, soft_wrap=True)
        yield
        return
    with _bar(console, label, total, done):
        yield


@contextmanager
def _bar(console, label: str, total: int, done: Callable[[], int]) -> Iterator[None]:
    from rich import progress as rich

    columns = [rich.TextColumn("{task.description}"), rich.BarColumn(), rich.TimeElapsedColumn()]
    if total:
        columns[2:] = [rich.DownloadColumn(), rich.TimeRemainingColumn()]
    finished = threading.Event()
    with rich.Progress(*columns, console=console) as bar:
        task = bar.add_task(label, total=total or None)

        def poll() -> None:
            while not finished.wait(0.2):
                bar.update(task, completed=min(done(), total) if total else 0)

        thread = threading.Thread(target=poll, daemon=True)
        thread.start()
        try:
            yield
            bar.update(task, total=total or 1, completed=total or 1)
        finally:
            finished.set()
            thread.join()

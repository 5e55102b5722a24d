"""Progress bars of counted work."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

TASK = "{task.description}"


def counted(console: Console, title: str | None = None, *, stays: bool = False) -> Progress:
    """Returns `title ━━━ 3/9 description 0:00:12 left 0:00:24`; without a title the description stands in its place.

    The bar goes when it is done, unless it `stays`.
    """
    ends: tuple[list[ProgressColumn], list[ProgressColumn]]
    ends = ([TextColumn(TASK)], []) if title is None else ([TextColumn(title)], [TextColumn(TASK)])
    time = [TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()]
    return Progress(*ends[0], BarColumn(), MofNCompleteColumn(), *ends[1], *time, console=console, transient=not stays)

"""Progress of a federated run: a bar over all clients on a terminal, one line per round elsewhere; always on stderr."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import Progress

from luthier.core.progress import counted

FIGURES = {"train_loss": "clients' loss", "eval_loss": "eval", "accuracy": "accuracy", "pearson": "pearson"}


class Shown:
    """What tells how far a run is."""

    def __init__(self, console: Console, bar: Progress | None, total: int) -> None:
        self.console, self.bar = console, bar
        self.task = bar.add_task("", total=total) if bar else None

    def client(self, number: int, client: int, loss: float) -> None:
        """A client has finished."""
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, advance=1, description=f"round {number}, client {client}  loss {loss:.4f}")

    def round(self, line: Mapping[str, Any]) -> None:
        """A round has."""
        told = "  ".join(f"{label} {line[name]:.4f}" for name, label in FIGURES.items() if name in line)
        self.console.print(f"round {line['round']}  {told}", highlight=False, soft_wrap=True)


@contextmanager
def shown(console: Console, total: int, lines: Sequence[Mapping[str, Any]]) -> Iterator[Shown]:
    """Shows the progress of a run, from where it stands."""
    if not console.is_terminal:
        plain = Shown(console, None, total)
        plain.round(lines[-1])
        yield plain
        return
    with counted(console, "training") as bar:
        begun = Shown(console, bar, total)
        begun.round(lines[-1])
        yield begun

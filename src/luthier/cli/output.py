"""The output of commands: tables and lines, plain in a pipe, or JSON."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from luthier.core.deprecation import LuthierDeprecationWarning

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 240
"""Columns when the output is not a terminal: rows stay on one line."""


def console(stderr: bool = False) -> Console:
    """Returns a console on the present stdout (or stderr); plain and wide in a pipe or file."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else PIPE_WIDTH, highlight=False)


def say(text: str = "") -> None:
    """A line on stdout, as it is."""
    console().print(text, markup=False, emoji=False, soft_wrap=True)


def tell(kind: str, text: str) -> None:
    """`kind: text` on stderr, in red where there is colour."""
    from rich.text import Text

    colour = "yellow" if kind == "warning" else "bold red"
    console(stderr=True).print(Text(f"{kind}: ", style=colour).append(text, style="default"), soft_wrap=True)


def tell_unread(names: Sequence[str], source: str) -> None:
    """Names on stderr what the data hold and nothing reads."""
    if names:
        tell("warning", f"nothing reads {', '.join(names)} of {source}.")


def say_json(value: Any) -> None:
    """`value` as JSON on stdout."""
    from luthier.core.records import finite

    sys.stdout.write(json.dumps(finite(value), indent=2, ensure_ascii=False) + "\n")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> None:
    """A table on stdout; numbers stand right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    cells = [list(row) for row in rows]
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for index, name in enumerate(columns):
        numeric = bool(cells) and all(isinstance(row[index], int | float) for row in cells)
        made.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        made.add_row(*[Text(shown(cell)) for cell in row])
    console().print(made)


def shown(value: object) -> str:
    """Returns a cell: whole numbers with thousands' commas, None as a dash."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "-" if value is None else str(value)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings as one line on stderr, without the place in the code that raised them."""

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        tell("warning", str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of libraries, to their own users
        warnings.simplefilter("default", LuthierDeprecationWarning)
        warnings.showwarning = show
        yield

"""The bar of a calibration pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console

from luthier.core.progress import counted

T = TypeVar("T")


@contextmanager
def told(console: Console, text: str) -> Iterator[Callable[[Sequence[T]], Iterable[T]]]:
    """A function that hands on a sequence and shows how far it is; in a pipe or file, one line says that it began."""
    if not console.is_terminal:
        console.print(f"{text} …", highlight=False)
        yield iter
        return
    with counted(console) as bar:
        yield lambda items: bar.track(items, description=text)

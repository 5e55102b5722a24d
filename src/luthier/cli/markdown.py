"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterator


def row(*cells: str) -> Iterator[str]:
    """Yields the head of a table."""
    yield line(*cells)
    yield line(*["---"] * len(cells))


def line(*cells: str) -> str:
    """Returns a row of a table; a bar inside a cell is escaped."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

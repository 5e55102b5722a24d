"""Bad rows: collected first, told all at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from luthier.core.errors import LuthierError

SHOWN = 20


class BadRow(LuthierError):
    """One row cannot be used; the message is the reason. `load` and `encode_all` gather these."""


@contextmanager
def named(row: int) -> Iterator[None]:
    """For work on one row: the reason that it cannot be used, with its number."""
    try:
        yield
    except BadRow as reason:
        raise LuthierError(f"row {row}: {reason}") from None


def refuse(
    source: str,
    bad: Sequence[tuple[int, str]],
    total: int,
    place: Callable[[int], str] = str,
) -> LuthierError:
    """The error that lists the first bad rows with their reasons, and says how many there are."""
    lines = [f"  row {place(row)}: {reason}" for row, reason in bad[:SHOWN]]
    if len(bad) > SHOWN:
        lines.append(f"  … and {len(bad) - SHOWN} more")
    return LuthierError(
        f"{len(bad)} of {total} rows of {source} cannot be used:\n"
        + "\n".join(lines)
        + "\nMend them, or go on without them: skip_bad_rows=True (--skip-bad-rows)."
    )

"""Bad rows: collected first, told all at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePath

from luthier.core.errors import LuthierError

SHOWN = 20
"""Reasons that are listed."""
PLACES = 5
"""Rows that are listed with a reason."""
LINED = (".jsonl", ".csv", ".tsv")
"""Files whose rows are numbered by their lines."""


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
    """Returns the error that lists the reasons with the first rows of each, and says how many there are.

    Reasons that differ in numbers alone (lengths, places) are one.
    """
    groups: dict[str, list[tuple[int, str]]] = {}
    for row, reason in bad:
        groups.setdefault(re.sub(r"\d+", "0", reason), []).append((row, reason))
    unit = "lines" if PurePath(source).suffix in LINED else "rows"
    lines = [f"  {_told(group, place, unit)}" for group in list(groups.values())[:SHOWN]]
    more = sum(map(len, list(groups.values())[SHOWN:]))
    if more:
        lines.append(f"  … and {more} more, for {len(groups) - SHOWN} other reasons")
    return LuthierError(
        f"{len(bad)} of {total} rows of {source} cannot be used:\n"
        + "\n".join(lines)
        + "\nMend them, or go on without them: skip_bad_rows=True (--skip-bad-rows)."
    )


def _told(group: Sequence[tuple[int, str]], place: Callable[[int], str], unit: str) -> str:
    rows, reasons = [row for row, _ in group], dict.fromkeys(reason for _, reason in group)
    first = next(iter(reasons)) + (" (the first; the like of the others)" if len(reasons) > 1 else "")
    if len(rows) == 1:
        return f"row {place(rows[0])}: {first}"
    shown = ", ".join(map(place, rows[:PLACES])) + (", …" if len(rows) > PLACES else "")
    return f"{len(rows)} rows: {first}; {unit} {shown}"

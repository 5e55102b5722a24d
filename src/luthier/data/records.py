"""Comma-separated rows of which one may be malformed without the others."""

from __future__ import annotations

import csv
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

ENOUGH = 4
"""Lines inside a quoted cell that look like rows, from which they are taken for rows though no column is a number."""
NUMBER = "number"


@dataclass(frozen=True)
class Record:
    """Lines `first` up to `last` (places in the list of lines), read as one row."""

    first: int
    last: int
    cells: list[str]
    wrong: str = ""
    """Why it is not a row."""


def records(lines: Sequence[str], start: int, width: int, mark: str = ",") -> list[Record]:
    """Returns the rows of `lines[start:]`, each of `width` cells with `mark` between them, quoted as RFC 4180.

    A row whose quotes do not close, or close elsewhere than before a comma or a line's end, is bad by itself: the next
    line is the next row, and lines that are no rows belong to the bad one before them. Two stray quotes in different
    rows make a cell of all that stands between them, which RFC 4180 allows; it is taken apart where every line
    in it is a row of the same kinds of columns as the other rows.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    found = list(_joined(_read(lines, start, len(lines), width, mark), width))
    if all(each.first == each.last for each in found):
        return found
    kinds = _kinds([each.cells for each in found if each.first == each.last and not each.wrong])
    apart: list[Record] = []
    for each in found:
        apart += _apart(each, lines, width, kinds, mark)
    return apart


def quotes(lines: Sequence[str], header: Sequence[str], start: int, mark: str) -> bool:
    """Returns whether quotes in a file of plain cells are those that a writer puts around cells, doubled within: the
    header stands in them, or more rows can only be meant so than are malformed by them."""
    if all(name[:1] == name[-1:] == '"' for name in header):
        return True
    if not any('"' in line for line in lines):
        return False
    found = records(lines, start, len(header), mark)
    meant = sum(_meant(each, lines, len(header), mark) for each in found if not each.wrong)
    return meant > sum(bool(each.wrong) for each in found)


def _meant(record: Record, lines: Sequence[str], width: int, mark: str) -> bool:
    """Whether lines are a row by their quotes alone: otherwise they have too many cells or too few, or a cell in quotes
    has only doubled ones within."""
    plain = [lines[i].removesuffix("\n").split(mark) for i in range(record.first, record.last + 1)]
    if any(len(cells) != width for cells in plain):
        return True
    inner = ('"' in cell and raw[:1] == '"' for cell, raw in zip(record.cells, plain[0], strict=True))
    return len(plain) == 1 and any(inner)


def _read(lines: Sequence[str], start: int, end: int, width: int, mark: str) -> Iterator[Record]:
    while start < end:
        reader = csv.reader((lines[i] for i in range(start, end)), strict=True, delimiter=mark)
        begun = start
        try:
            for cells in reader:
                last = begun + reader.line_num - 1
                if start < last and len(cells) != width:
                    break
                yield Record(start, last, cells, _miscounted(cells, width))
                start = last + 1
            else:
                return
            wrong = _miscounted(cells, width)
        except csv.Error as error:
            closed = "unexpected end" not in str(error)
            wrong = f"malformed: {error}" if closed else "malformed: a quote that opens a cell is never closed"
        yield Record(start, start, [], wrong)
        start += 1


def _miscounted(cells: Sequence[str], width: int) -> str:
    return "" if len(cells) in (0, width) else f"{len(cells)} cells, the header has {width}"


def _joined(found: Iterator[Record], width: int) -> Iterator[Record]:
    """Without empty lines, and without the remains of a malformed row, which count as that row."""
    broken = False
    for each in found:
        if each.wrong and not each.cells:
            broken = True
            yield each
        elif each.cells and not (broken and len(each.cells) != width):
            broken = False
            yield each


Kinds = list[str]
"""Of each column: what nine of ten cells are; empty where they differ."""


def _kinds(rows: Sequence[Sequence[str]]) -> Kinds:
    return [_most(map(_kind, column)) for column in zip(*rows, strict=True)] if len(rows) > 1 else []


def _most(kinds: Iterable[str]) -> str:
    found = Counter(kinds)
    ((kind, count),) = found.most_common(1)
    return kind if count >= 0.9 * found.total() else ""


def _kind(cell: str) -> str:
    """A number, or text that opens with a space (after a comma, prose) or without."""
    try:
        float(cell.strip('"'))
    except ValueError:
        return "spaced" if cell[:1].isspace() else "text"
    return NUMBER


def _apart(record: Record, lines: Sequence[str], width: int, kinds: Kinds, mark: str) -> list[Record]:
    """A record of several lines that are rows by themselves is a stray quote and these rows."""
    inner = range(record.first + 1, record.last + 1)
    if width < 2 or not inner or not kinds:
        return [record]
    rows = [each for i in inner for each in _read(lines, i, i + 1, width, mark)]
    if any(each.wrong or not each.cells for each in rows) or not _alike(rows, kinds):
        return [record]
    told = len(inner) >= ENOUGH or (len(inner) > 1 and NUMBER in kinds) or _follows(record, rows[0], kinds)
    if not told:
        return [record]
    lines_on = "a line" if len(inner) == 1 else f"{len(inner)} lines"
    wrong = f"malformed: a quote that closes only {lines_on} further on, where rows of their own stand"
    return [Record(record.first, record.first, [], wrong), *rows]


def _follows(record: Record, after: Record, kinds: Kinds) -> bool:
    """Whether a column that numbers the rows goes on from one to the other."""
    pairs = [(a, b) for a, b, k in zip(record.cells, after.cells, kinds, strict=True) if k == NUMBER]
    return any(a.isdecimal() and b.isdecimal() and int(b) == int(a) + 1 for a, b in pairs)


def _alike(rows: Sequence[Record], kinds: Kinds) -> bool:
    found = [_most(map(_kind, column)) for column in zip(*(each.cells for each in rows), strict=True)]
    return all(not kind or kind == other for kind, other in zip(kinds, found, strict=True))

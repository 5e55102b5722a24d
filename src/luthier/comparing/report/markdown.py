"""The tables of a study in Markdown, for a README or a paper."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from luthier.comparing.measures.looks import decided
from luthier.comparing.measures.significance import Interval
from luthier.comparing.record import Record
from luthier.comparing.report import formatting
from luthier.comparing.report.summary import Row, Section, sections
from luthier.core.families import told

FILE = "results.md"


def write(folder: Path, found: Sequence[Record]) -> Path:
    """Returns `results.md` in the study's folder: a table for each model and data set, and what may be said of it."""
    path = folder / FILE
    temporary = path.with_name(f".{FILE}.{os.getpid()}")
    tables = map(section, sections(found, decided(folder)))
    temporary.write_text("\n\n".join(tables) + "\n", encoding="utf-8")
    temporary.replace(path)
    return path


def section(found: Section) -> str:
    """Returns a title, the table, the verdict in one sentence, its reasons, and what seeds were added to tell."""
    head, *rows = cells(found)
    lines = [head, ["---"] * len(head), *([f"`{method}`", *told] for method, *told in rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    said = " ".join([found.headline, *found.reasons])
    decisions = ["\n".join(f"- {line.sentence}" for line in found.looked)] if found.looked else []
    return "\n\n".join([f"### {found.name}", table, said, *decisions, told(found.checklist)])


def cells(found: Section) -> list[list[str]]:
    """Returns the head of a table and a line for each method; columns of which nothing is known are left out."""
    columns = [(name, read) for name, read in _columns(found) if any(read(row) for row in found.rows)]
    head = ["method", *(name for name, _ in columns)]
    return [head, *([row.method, *(read(row) for _, read in columns)] for row in found.rows)]


def _columns(found: Section) -> list[tuple[str, Callable[[Row], str]]]:
    several = found.parts if len(found.parts) > 1 else []
    return [
        (found.metric, lambda row: formatting.score(row.score.value)),
        ("95%", lambda row: formatting.interval(row.score)),
        *((part, lambda row, part=part: _told(row.parts.get(part), formatting.score)) for part in several),
        ("trained", lambda row: formatting.count(row.trainable.value)),
        ("on disk", lambda row: formatting.megabytes(row.bytes.value) if row.bytes.value else ""),
        ("step / frozen base", lambda row: _told(row.step_ratio, formatting.ratio)),
        ("peak memory", lambda row: _told(row.peak_bytes, formatting.megabytes)),
        ("calibration error", lambda row: _told(row.calibration_error, formatting.score)),
        *(
            (f"{what}: worse by", lambda row, w=what: _told(row.forgetting.get(w), formatting.change))
            for what in found.held
        ),
        ("intruders (null)", _intruders),
    ]


def _told(value: Interval | None, tell: Callable[[float], str]) -> str:
    return tell(value.value) if value is not None and formatting.known(value.value) else ""


def _intruders(row: Row) -> str:
    counts = [_told(each, formatting.count) for each in (row.intruders, row.intruders_null)]
    return f"{counts[0]} ({counts[1]})" if all(counts) else ""

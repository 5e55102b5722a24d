"""The tables of a study in LaTeX, for a paper."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from luthier.comparing.record import Record
from luthier.comparing.report.markdown import cells
from luthier.comparing.report.summary import Section, sections

FILE = "results.tex"
SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
SPECIAL |= {character: "\\" + character for character in "&%$#_{}"}
SPECIAL |= {"\u00b1": r"$\pm$", "\u2212": "$-$", "\u00d7": r"$\times$", "\u2013": "--"}


def write(folder: Path, found: Sequence[Record]) -> Path:
    """Returns `results.tex` in the study's folder: a `table` with booktabs' rules for each model and data set."""
    path = folder / FILE
    temporary = path.with_name(f".{FILE}.{os.getpid()}")
    tables = "\n\n".join(map(table, sections(found)))
    temporary.write_text(f"% \\usepackage{{booktabs}}\n{tables}\n", encoding="utf-8")
    temporary.replace(path)
    return path


def table(found: Section) -> str:
    """Returns a table, its caption the verdict in one sentence."""
    head, *rows = [[escaped(cell) for cell in line] for line in cells(found)]
    lines = [" & ".join(line) + r" \\" for line in (head, *rows)]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escaped(found.name)}. {escaped(found.headline)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def escaped(text: str) -> str:
    """Returns a text whose characters LaTeX prints as they are."""
    return "".join(SPECIAL.get(character, character) for character in text)

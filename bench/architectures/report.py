"""The table of what came of every class, as docs/architectures.md."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from bench.architectures.classes import FAMILIES, known
from bench.architectures.laws import FORMS

Row = dict[str, Any]
HEAD = """# Architectures

Every class of transformers' auto mappings for these families, in small: `python -m bench architectures` builds each
from its own configuration with its fields made small (by their names; no architecture is listed), finds inputs, and
holds {forms} to the same laws, in float32 on a CPU. A form holds if it starts as a no-op, moves the output when its
parameters move, gives a gradient to every parameter where the base has one, lowers the loss in a step, gives the same
output when it is saved and loaded onto a fresh base, merges to the same output (loreft: is refused there, as no weight
expresses it), unmerges, and leaves the base bit-equal when it is detached. Weights are random, so this says that the
mechanism is right, and nothing about quality. `tests/laws/test_any_architecture.py` runs a sample of it.

{versions}
"""
NOTE = """
*Tried* counts the classes that have been run; *not run* are those that need a library which was not installed, that the
small configuration does not build, that take inputs of which the harness knows nothing, or that were out of time (a
limit of processor seconds for one class). *Hold* counts the classes on which all four forms hold.
"""


def report(rows: list[Row]) -> str:
    """The page."""
    versions = sorted({row["transformers"] for row in rows})
    head = HEAD.format(forms=", ".join(FORMS), versions=f"transformers {', '.join(versions)}.")
    return "\n".join([head, *_families(rows), NOTE, *_refused(rows), "", *_unbuilt(rows), ""])


def _families(rows: list[Row]) -> Iterable[str]:
    yield "| family | classes | tried | not run | run | hold | some form refused |"
    yield "|---|---|---|---|---|---|---|"
    every = known()
    for family in FAMILIES:
        yield _counted(family, [r for r in rows if r["family"] == family], sum(k.family == family for k in every))
    yield _counted("**all**", rows, len(every))


def _counted(name: str, rows: list[Row], classes: int) -> str:
    ran = [row for row in rows if runs(row)]
    hold = sum(holds(row) for row in ran)
    share = f" ({hold / len(ran):.0%})" if ran else ""
    numbers = classes, len(rows), len(rows) - len(ran), len(ran), f"{hold}{share}", len(ran) - hold
    return f"| {name} | {' | '.join(map(str, numbers))} |"


def runs(row: Row) -> bool:
    """Whether the class was built and no form was out of time."""
    return row["built"] and all(row.get(form, {"status": "slow"})["status"] != "slow" for form in FORMS)


def holds(row: Row) -> bool:
    """Whether every form holds."""
    return all(row[form]["status"] == "holds" for form in FORMS)


def _refused(rows: list[Row]) -> Iterable[str]:
    yield "## What does not hold\n"
    yield "| class | forms | verdict | reason |"
    yield "|---|---|---|---|"
    for row in filter(runs, rows):
        found: dict[tuple[str, str], list[str]] = {}
        for form in FORMS:
            if row[form]["status"] != "holds":
                found.setdefault((row[form]["status"], _short(row[form]["reason"])), []).append(form)
        for (status, reason), forms in found.items():
            yield f"| {row['name']} | {', '.join(forms)} | {status} | {reason} |"


def _unbuilt(rows: list[Row]) -> Iterable[str]:
    yield "## What was not run\n"
    yield "| class | reason |"
    yield "|---|---|"
    for row in rows:
        if not runs(row):
            yield f"| {row['name']} | {_short(row['reason']) if not row['built'] else 'out of time'} |"


def _short(reason: str) -> str:
    """One line of a table, without the paths of this machine."""
    reason = re.sub(r"/\S*/(?=[\w.]+)", "", " ".join(reason.split()))
    return reason.replace("|", "\\|")[:240]

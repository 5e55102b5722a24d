"""Generated code, scored by the tests of its row, which run in a sandbox."""

from __future__ import annotations

import re

from luthier.core.contracts.example import Example
from luthier.core.errors import LuthierError
from luthier.data.sandbox import LIMITS, Limits, Ran, run_program

COLUMNS = ("tests", "entry_point", "before")
"""Columns of a row that the scorer reads: code that asserts; the name that HumanEval's `check` is called with; code
that stands before the answer (HumanEval's prompt)."""
FENCE = re.compile(r"```(?:[Pp]y(?:thon)?\d?)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


def passes(prediction: str, example: Example, limits: Limits = LIMITS) -> float:
    """Scores 1 when the row's tests run to their end after the code in an answer, in the sandbox.

    The code is what stands in fences, one after another, else the whole answer. Raises `LuthierError` for a row without
    tests, and where there is no sandbox.
    """
    return float(executed(prediction, example, limits).passed)


def executed(prediction: str, example: Example, limits: Limits = LIMITS) -> Ran:
    """As `passes`, with the reason."""
    return run_program(program(prediction, example), limits)


def program(prediction: str, example: Example) -> str:
    """Returns what is run: what stands before an answer, its code, and the tests."""
    tests = example.meta.get("tests")
    if not isinstance(tests, str) or not tests.strip():
        raise LuthierError(f"row {example.row} has no tests to run; give a column `tests` with code that asserts.")
    entry, before = example.meta.get("entry_point"), example.meta.get("before") or ""
    called = f"check({entry})\n" if entry else ""
    return f"{before}{code_of(prediction)}\n\n{tests}\n{called}"


def code_of(answer: str) -> str:
    """Returns the code of an answer: what its fences hold, else all of it."""
    return "\n".join(FENCE.findall(answer)) or answer

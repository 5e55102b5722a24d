"""Generated code: it is shut in, limited, and scored by the tests of its row."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from luthier.core.contracts.example import Example, Scorer
from luthier.core.errors import LuthierError
from luthier.data import SCORERS, judge, refuse_unscorable
from luthier.data.execution import code_of, program
from luthier.data.sandbox import Limits, check_sandbox, run, run_program


def _there_is_one() -> bool:
    try:
        check_sandbox()
    except LuthierError:
        return False
    return True


shut_in = pytest.mark.skipif(not _there_is_one(), reason="needs Linux with Landlock and seccomp")
QUICK = Limits(1.0, 256)


@shut_in
@pytest.mark.parametrize(
    "code, told",
    [
        ("assert sum(range(5)) == 10", None),
        ("import json, re, math, decimal, heapq, itertools, datetime, random; assert json.loads('[1]') == [1]", None),
        ("assert 1 == 2, 'not so'", "AssertionError: not so"),
        ("while True: pass", "more than 1 seconds"),
        ("x = [0] * 10**9", "MemoryError"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("import os; os._exit(0)", "ended itself"),
        ("open('/etc/passwd')", "PermissionError"),
        ("open('made', 'w')", "PermissionError"),
        ("import os; os.listdir('/')", "PermissionError"),
        ("import os; os.unlink('/tmp/x')", "Error"),
        ("import socket; socket.create_connection(('127.0.0.1', 1))", "PermissionError"),
        ("import subprocess; subprocess.run(['true'])", "PermissionError"),
        ("import os; os.fork()", "PermissionError"),
        ("import os; os.kill(os.getppid(), 9)", "PermissionError"),
        ("import ctypes; assert ctypes.CDLL(None).syscall(41, 2, 1, 0) == -1", None),
        ("def f(): return f()\nf()", "RecursionError"),
        ("import torch", "ModuleNotFoundError"),
        ("def", "SyntaxError"),
    ],
)
def test_what_a_program_may_do(code, told):
    ran = run_program(code, QUICK)
    assert ran.passed == (told is None) and (told or "") in ran.reason, ran


@shut_in
def test_nothing_of_the_parent_is_seen(tmp_path, monkeypatch):
    """Neither its environment nor its files and descriptors; a flood of output is dropped."""
    monkeypatch.setenv("SECRET", "1")
    with open(tmp_path / "held", "w") as held:
        os.set_inheritable(held.fileno(), True)
        ran = run_program(
            f"import os\nassert 'SECRET' not in os.environ\ntry:\n    os.write({held.fileno()}, b'x')\n"
            "except OSError:\n    pass\nfor _ in range(1000): print('x' * 1000)",
            QUICK,
        )
    assert ran.passed and (tmp_path / "held").read_text() == "" and not list(Path.cwd().glob("made"))


def test_windows_is_told_that_it_has_none(monkeypatch):
    """Where processes cannot be given a pipe, none is started."""
    monkeypatch.setattr(run.sys, "platform", "win32")
    monkeypatch.setattr(run, "_run", None)
    check_sandbox.cache_clear()
    try:
        with pytest.raises(LuthierError, match="this machine cannot give one: it runs win32"):
            check_sandbox()
    finally:
        check_sandbox.cache_clear()


def test_without_a_sandbox_nothing_is_run(monkeypatch):
    """The reason is told; no program starts."""
    started = []

    def refused(code, limits):
        started.append(code)
        return run.Ran(False, "there is no such sandbox on plan9 pdp11")

    check_sandbox.cache_clear()
    monkeypatch.setattr(run, "_run", refused)
    try:
        with pytest.raises(LuthierError, match="this machine cannot give one: there is no such sandbox on plan9"):
            run_program("print(1)")
        row = Example(row=1, meta={"tests": "assert True"})
        with pytest.raises(LuthierError, match="cannot give one"):
            refuse_unscorable(Scorer("tests", SCORERS["tests"]), [row])
    finally:
        check_sandbox.cache_clear()
    assert started == [run.BREAKOUT] * 2


@pytest.mark.parametrize("wrong", [{"seconds": 0}, {"memory": 1}])
def test_limits_out_of_range(wrong):
    with pytest.raises(LuthierError, match="a program may"):
        Limits(**wrong)


ROW = Example(row=1, meta={"tests": "assert double(4) == 8"})
HUMAN = Example(
    row=2,
    meta={
        "before": "def triple(x):\n", "tests": "def check(f):\n    assert f(2) == 6", "entry_point": "triple",
    },
)  # fmt: skip


def test_what_is_run():
    answer = "Here:\n```python\ndef double(x):\n    return 2 * x\n```\nand\n```\ny = 1\n```"
    assert code_of(answer) == "def double(x):\n    return 2 * x\n\ny = 1\n" and code_of("x = 1") == "x = 1"
    assert program("    return 3 * x", HUMAN).startswith("def triple(x):\n    return 3 * x\n")
    assert program("", HUMAN).endswith("check(triple)\n")
    with pytest.raises(LuthierError, match="row 3 has no tests to run"):
        program("x", Example(row=3))


@shut_in
def test_answers_are_scored_by_their_tests():
    scorer = Scorer("tests", SCORERS["tests"])
    refuse_unscorable(scorer, [ROW, HUMAN])
    right, wrong = "```python\ndef double(x):\n    return 2 * x\n```", "def double(x):\n    return x"
    assert [judge(scorer, answer, ROW)[0] for answer in (right, wrong, "double it")] == [1, 0, 0]
    assert judge(scorer, "    return 3 * x", HUMAN) == (1.0, None)

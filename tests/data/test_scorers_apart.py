"""Scorers of other packages run in one process of their own: what hangs, ends or raises is a wrong answer, and told."""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from luthier.core.contracts.example import Example, Scorer
from luthier.core.errors import LuthierError
from luthier.data import judge
from luthier.data.sandbox import Limits, check_sandbox, scorers
from luthier.data.sandbox.scorers import ScorerFailed, Worker, score_apart, worker

STUB = """
import os, time
seen = []
def half(answer, entry): return 0.5
def length(answer, entry): seen.append(answer); return len(answer) / entry[0]
def calls(answer, entry): return len(seen)
def pid(answer, entry): return os.getpid()
def sleeps(answer, entry): time.sleep(30)
def works(answer, entry):
    end = time.process_time() + 30
    while time.process_time() < end: pass
def leaves(answer, entry): raise SystemExit(3)
def ends(answer, entry): os._exit(4)
def raises(answer, entry): raise KeyError(answer)
def says(answer, entry): print("{}", flush=True); return 1.0
def words(answer, entry): return "a"
def eats(answer, entry): bytearray(1 << 31); return 1.0
def reads(answer, entry): return float(len(open(answer).read()))
def writes(answer, entry): open(answer, "w").close(); return 1.0
def dials(answer, entry): import socket; socket.socket(); return 1.0
def starts(answer, entry): os.fork(); return 1.0
def scorer_of(name): return globals()[name]
"""


@pytest.fixture(scope="module")
def stub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("package")
    (folder / "luthier_stub_scorers.py").write_text(STUB)
    sys.path.append(str(folder))
    found = Worker("luthier_stub_scorers", "scorer_of", os.getpid(), Limits(1.0, 512))
    yield found
    found.close()
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def shut_in(stub):
    try:
        check_sandbox()
    except LuthierError:
        pytest.skip("needs Linux with Landlock and seccomp")
    return stub


def test_one_process_scores_them_all(stub):
    """It keeps its state and is given Python's own values; a lone surrogate and a flood of text arrive."""
    first = stub.score("pid", "", None)
    assert first != os.getpid() and stub.score("half", "x", {"a": 1}) == 0.5
    before = stub.score("calls", "", None)
    for text in ("abc", "\ud800", "é" * 200_000):
        assert stub.score("length", text, (7, {1: "integer keys stay"})) == len(text) / 7
    assert stub.score("says", "", None) == 1.0
    assert stub.score("calls", "", None) == before + 3 and stub.score("pid", "", None) == first


@pytest.mark.parametrize(
    "name, told",
    [
        ("raises", "KeyError: 'text'"),
        ("leaves", "SystemExit: 3"),
        ("words", "ValueError: could not convert string to float: 'a'"),
        ("unknown", "KeyError: 'unknown'"),
    ],
)
def test_what_a_scorer_raises_is_told_and_its_process_stays(stub, name, told):
    before = stub.score("pid", "", None)
    found = judge(Scorer("own", lambda text, row: stub.score(name, text, None)), "text", Example(row=1))
    assert found == (0.0, f"ScorerFailed: {told}")
    assert stub.score("pid", "", None) == before


@pytest.mark.skipif(sys.platform == "win32", reason="timers of processor time")
@pytest.mark.parametrize("name, told", [("works", "its scorer ran for more than 1 seconds"), ("ends", "(code 4)")])
def test_what_hangs_or_ends_is_wrong_and_another_process_takes_over(stub, name, told):
    before = stub.score("pid", "", None)
    score, why = judge(Scorer("own", lambda text, row: stub.score(name, text, None)), "text", Example(row=1))
    assert score == 0 and why is not None and told in why
    assert stub.score("half", "", None) == 0.5 and stub.score("pid", "", None) != before


def test_what_waits_for_ever_is_ended_by_the_clock(stub):
    short, start = Worker(stub.module, stub.function, os.getpid(), Limits(0.2, 512), slack=0.3), time.monotonic()
    with pytest.raises(ScorerFailed, match=r"its scorer ran for more than 0\.2 seconds"):
        short.score("sleeps", "", None)
    assert time.monotonic() - start < 20 and short.process is None


def test_a_process_that_ended_between_answers_costs_none(stub):
    stub.score("half", "", None)
    stub.process.kill()
    stub.process.wait()
    assert stub.score("half", "", None) == 0.5


@pytest.mark.parametrize(
    "name, told", [("reads", "PermissionError"), ("writes", "PermissionError"), ("dials", "PermissionError"),
                   ("starts", "PermissionError"), ("eats", "MemoryError")],
)  # fmt: skip
def test_it_has_no_files_no_network_no_processes_and_little_memory(shut_in, tmp_path, name, told):
    held = tmp_path / "held"
    held.write_text("text")
    with pytest.raises(ScorerFailed, match=told):
        shut_in.score(name, str(held), None)
    assert held.read_text() == "text" and shut_in.score("half", "", None) == 0.5


def test_an_interrupt_ends_it_so_that_no_reply_is_taken_for_another(stub, monkeypatch):
    stub.score("half", "", None)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(scorers, "_exchanged", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        stub.score("half", "", None)
    assert stub.process is None and stub.score("half", "", None) == 0.5


def test_without_limits_it_is_a_plain_process_and_said_so(stub, tmp_path, monkeypatch):
    """As on Windows and macOS, or an old kernel: an answer that ends its process is wrong there too."""
    (tmp_path / "luthier_stub_elsewhere.py").write_text("import platform\nplatform.machine = lambda: 'pdp11'\n" + STUB)
    monkeypatch.syspath_prepend(str(tmp_path))
    scorers._tell_unlocked.cache_clear()
    plain = Worker("luthier_stub_elsewhere", "scorer_of", os.getpid(), Limits(1.0, 512))
    with pytest.warns(UserWarning, match="in a process of its own, with a limit of time alone: .* pdp11"):
        assert plain.score("half", "", None) == 0.5
    with pytest.raises(ScorerFailed, match="code 4"):
        plain.score("ends", "", None)
    assert plain.score("dials", "", None) == 1.0
    plain.close()


def test_a_package_that_is_not_there_is_refused():
    found = Worker("luthier_no_such_package", "scorer_of", os.getpid())
    with pytest.raises(LuthierError, match="does not start: ModuleNotFoundError: No module named 'luthier_no_such"):
        found.score("half", "", None)
    assert found.process is None


def test_each_process_has_its_own():
    assert worker("m", "f", 1) is worker("m", "f", 1) is not worker("m", "f", 2)


@pytest.mark.parametrize("task", ["chain_sum", "number_sorting", "letter_counting", "spell_backward"])
def test_gym_tasks_score_as_they_do_in_this_process(task):
    gym = pytest.importorskip("reasoning_gym")
    from reasoning_gym.factory import get_score_answer_fn

    problems, here = gym.create_dataset(task, size=3, seed=5), get_score_answer_fn(task)
    for entry in (problems[i] for i in range(3)):
        for answer in (entry["answer"], problems[0]["answer"], "42", "", f" {entry['answer']}\n"):
            there = score_apart("reasoning_gym.factory", "get_score_answer_fn", task, answer, entry)
            assert there == float(here(answer, entry))


def test_threads_share_a_worker(monkeypatch):
    class Slow:
        def __init__(self, *_):
            time.sleep(0.05)

    monkeypatch.setattr(scorers, "Worker", Slow)
    monkeypatch.setattr(scorers, "WORKERS", {})
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(lambda _: worker("m", "f", 1), range(4)))) == 1

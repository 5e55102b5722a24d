"""A scorer that fails on an answer: the answer is wrong, the reason is told, and nothing generated is lost."""

from __future__ import annotations

import dataclasses
import importlib

import pytest

from luthier import data
from luthier.core.errors import LuthierError
from luthier.data import Example, Examples, Scorer, judge, refuse_unscorable
from luthier.evaluating import written

evaluation = importlib.import_module("luthier.evaluating.evaluate")


def touchy(prediction: str, example: Example) -> float:
    return {"one": 1.0, "half": 0.5, "much": 7.0}[prediction]


ROWS = [Example(row=i, messages=[], answer="one") for i in range(1, 5)]


def test_what_a_scorer_fails_on_is_wrong():
    scorer = Scorer("touchy", touchy)
    assert judge(scorer, "half", ROWS[0]) == (0.5, None)
    assert judge(scorer, "two", ROWS[0]) == (0.0, "KeyError: 'two'")
    assert judge(scorer, "much", ROWS[0]) == (0.0, "a score of 7.0, expected 0 to 1")


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (lambda *_: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda *_: exit(3), "SystemExit: 3"),
        (lambda *_: "a", "ValueError: could not convert string to float: 'a'"),
        (lambda *_: None, "TypeError: "),
        (lambda *_: float("nan"), "a score of nan, expected 0 to 1"),
        (lambda text, row: (_ for _ in ()).throw(RecursionError("deep")), "RecursionError: deep"),
        (lambda text, row: (_ for _ in ()).throw(LuthierError("no answer")), "LuthierError: no answer"),
    ],
)
def test_however_a_scorer_fails_the_answer_is_wrong_and_the_reason_told(how, reason):
    score, told = judge(Scorer("own", how), "one", ROWS[0])
    assert score == 0 and told.startswith(reason)


def test_an_evaluation_goes_on_and_lists_it(monkeypatch):
    monkeypatch.setattr(written, "answers", lambda *_: ["one", "two", "half", "much"])
    monkeypatch.setattr(written.data, "prompt_ids", lambda *_: [1])
    monkeypatch.setattr(written, "row_tasks", lambda job: None)
    examples = dataclasses.replace(Examples(ROWS, "messages", "rows"), scorer=Scorer("touchy", touchy))
    found = evaluation.evaluate(None, None, examples, progress=False)
    assert found.score == 1.5 / 4 and [p["score"] for p in found.predictions] == [1.0, 0.0, 0.5, 0.0]
    assert found.failed == [(2, "KeyError: 'two'"), (4, "a score of 7.0, expected 0 to 1")]


def test_rows_that_no_answer_could_be_scored_for_are_refused_before_generating():
    refuse_unscorable(Scorer("touchy", touchy), ROWS)
    with pytest.raises(LuthierError, match="row 1: no number in the reference 'one'"):
        refuse_unscorable(Scorer("number", data.SCORERS["number"]), ROWS)
    with pytest.raises(LuthierError, match="row 9 has no reference answer"):
        refuse_unscorable(Scorer("exact_match", data.SCORERS["exact_match"]), [Example(row=9)])


@pytest.mark.parametrize("task", ["prime_factorization", "chain_sum", "number_sorting", "letter_counting"])
def test_gym_scores_whatever_a_model_says(task):
    pytest.importorskip("reasoning_gym")
    examples = data.load(f"gym:{task}", limit=3)
    assert examples.scorer is not None
    for words in ("", "?", "two times three", "2 × x", "[1, 2", "None"):
        for example in examples.rows:
            score, _ = judge(examples.scorer, words, example)
            assert 0 <= score <= 1

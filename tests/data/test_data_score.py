"""Scorers: what counts as right."""

from __future__ import annotations

import pytest

from luthier.core.errors import LuthierError
from luthier.data import SCORERS, Example, Examples, Scorer, refuse_unscorable, scorer_for


def score(name: str, prediction: str, answer: str, **fields) -> float:
    return SCORERS[name](prediction, Example(row=1, answer=answer, **fields))


@pytest.mark.parametrize(
    ("prediction", "answer", "right"),
    [
        ("The answer is 72.", "so 48+24 = <<48+24=72>>72 clips\n#### 72", 1),
        ("#### 72\nand 3 more", "72", 1),
        ("72 apples, of 73", "72", 0),
        ("It costs $1,234.50.", "1234.5", 1),
        ("10 - 3 = 7", "7", 1),
        ("it is 10-3", "3", 1),
        ("it is -3", "-3", 1),
        ("-3", "3", 0),
        ("= -12955", "-12955", 1),
        ("15", "15.0", 1),
        ("1.8333", "1.8333333333333335", 1),
        ("1.83", "1.8333333333333335", 0),
        ("1,000", "1001", 0),
        ("0.0005", "0", 0),
        ("2e3", "2000", 1),
        (".5", "0.5", 1),
        ("it is –5", "-5", 1),
        ("from 3–5", "5", 1),
        ("$1{,}234$", "1234", 1),
        ("no idea", "3", 0),
        ("", "3", 0),
    ],
)
def test_number(prediction, answer, right):
    assert score("number", prediction, answer) == right


@pytest.mark.parametrize(
    ("prediction", "answer", "right"),
    [
        ("the correct answer is true", "true", 1),
        ("False", "true", 0),
        ("the correct answer is answer3", "answer3", 1),
        ("Answer 3", "answer3", 1),
        ("answer1 or answer2? The answer is answer2.", "answer2", 1),
        ("the correct answer is answer1 answer2", "answer2", 0),
        ("Let me see. A is wrong, so the answer is (D).", "D", 1),
        ("A rate of 3. Hence B", "B", 1),
        ("B", "b", 1),
        ("B. A cat", "B", 1),
        ("B) A cat is an animal", "B", 1),
        ("B: I think", "B", 1),
        ("A. I like it", "A", 1),
        ("B. A cat is an animal", "A", 0),
        ("(b)", "B", 1),
        ("answer: b", "B", 1),
        ("The answer is (c), a cat.", "C", 1),
        ("B", "maybe", 0),
        ("untrue", "true", 0),
        ("", "true", 0),
    ],
)
def test_choice(prediction, answer, right):
    if answer == "maybe":
        with pytest.raises(LuthierError, match="no choice in the reference"):
            score("choice", prediction, answer)
    else:
        assert score("choice", prediction, answer) == right


def test_exact_match_and_label():
    assert score("exact_match", " a  b\n", "a b") == 1
    assert score("exact_match", "A b", "a b") == 0
    assert score("label", " Yes", "", label="yes") == 1
    assert score("label", "2.50", "", label=2.5) == 1
    assert score("label", "no", "", label="yes") == 0


def test_final_follows_each_reference():
    assert score("final", "so the answer is 4", "4.0") == score("final", "the answer is B", "B") == 1


def test_a_reference_without_a_number_is_an_error():
    with pytest.raises(LuthierError, match="row 1: no number"):
        score("number", "3", "three")
    with pytest.raises(LuthierError, match="row 1 has no reference"):
        SCORERS["number"]("3", Example(row=1))


@pytest.mark.parametrize(
    ("answers", "name"),
    [
        (["x\n#### 3", "4"], "number"),
        (["$1,000", "-2.5"], "number"),
        (["true", "false"], "choice"),
        (["A", "(C)"], "choice"),
        (["A", "12"], "final"),
        (["A", "12", "a sentence"], "exact_match"),
    ],
)
def test_the_default_follows_the_references(answers, name):
    rows = [Example(row=i, answer=answer) for i, answer in enumerate(answers, 1)]
    scorer = scorer_for(Examples(rows, "question-answer", "file"))
    assert scorer is not None and scorer.name == name


def test_the_default_without_references():
    assert scorer_for(Examples([Example(row=1, text="t")], "text", "file")) is None
    scorer = scorer_for(Examples([Example(row=1, text="t", label="x")], "text-label", "file"))
    assert scorer is not None and scorer.name == "label"


def test_an_unknown_scorer_names_near_ones():
    with pytest.raises(LuthierError, match="no scorer 'exact'; did you mean 'exact_match'"):
        scorer_for(Examples([], "text", "file"), "exact")


def test_no_answer_is_scored_against_one_that_is_kept_out_of_the_loss():
    turns = [{"role": role, "content": role} for role in ("user", "assistant", "user", "assistant")]
    scorer = Scorer("exact_match", SCORERS["exact_match"])
    refuse_unscorable(scorer, [Example(row=1, messages=turns, masked=(1,), answer="assistant")])
    kept_out = Example(row=2, messages=turns, masked=(3,), answer="assistant", meta={"entry": {}})
    refuse_unscorable(Scorer("gym", lambda *_: 1.0), [kept_out])
    with pytest.raises(LuthierError, match="row 2 keeps its last answer"):
        refuse_unscorable(scorer, [kept_out])

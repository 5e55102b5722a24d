"""Figures of tasks are those of the field's own libraries, on the same predictions."""

from __future__ import annotations

import random

import numpy as np
import pytest

from luthier.core.contracts.example import Example
from luthier.core.errors import LuthierError
from luthier.core.numerics import extracted, many, near, tags
from luthier.data.text_metrics import TEXT_METRICS, check_metrics, of_texts, refuse_references

NAMES = ["O", "B-PER", "I-PER", "E-PER", "S-PER", "B-LOC", "I-LOC"]


def drawn(seed: int, count: int = 40) -> list[list[str]]:
    draw = random.Random(seed)
    return [[draw.choice(NAMES) for _ in range(1 + i % 9)] for i in range(count)]


def noisy(rows: list[list[str]]) -> list[list[str]]:
    draw = random.Random(9)
    return [[tag if draw.random() < 0.8 else draw.choice(NAMES) for tag in row] for row in rows]


SEQEVAL = {"precision": 0.8410596026490066, "recall": 0.8758620689655172, "f1": 0.8581081081081081}
"""seqeval 1.2.2's, of the rows of seed 0 and their noisy copy."""


def test_entities_by_hand():
    assert tags.entities(["B-X", "I-X", "I-Y", "O", "I-X", "E-X", "S-X", "I-X"]) == {
        ("X", 0, 1), ("Y", 2, 2), ("X", 4, 5), ("X", 6, 6), ("X", 7, 7)
    }  # fmt: skip
    assert tags.entities(["O", "O"]) == set() == tags.entities([])
    assert tags.marked(NAMES) and not tags.marked(["NOUN", "VERB"]) and not tags.marked(["O"])


def test_entities_are_seqevals_as_recorded():
    truth = drawn(0)
    said = noisy(truth)
    found = tags.figures(tags.counted(said, truth, True), True)
    assert {name: found[name] for name in SEQEVAL} == pytest.approx(SEQEVAL)


@pytest.mark.parametrize("seed", range(5))
def test_entities_are_seqevals(seed):
    seqeval = pytest.importorskip("seqeval.metrics")
    truth = drawn(seed)
    said = noisy(truth)
    found = tags.figures(tags.counted(said, truth, True), True)
    assert found["f1"] == pytest.approx(seqeval.f1_score(truth, said))
    assert found["precision"] == pytest.approx(seqeval.precision_score(truth, said))
    assert found["recall"] == pytest.approx(seqeval.recall_score(truth, said))
    assert found["accuracy"] == pytest.approx(seqeval.accuracy_score(truth, said))
    theirs = seqeval.classification_report(truth, said, output_dict=True)
    for name, each in tags.by_type(said, truth).items():
        assert each["f1"] == pytest.approx(theirs[name]["f1-score"]) and each["rows"] == theirs[name]["support"]


def test_several_classes_are_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(0)
    truth, logits = draw.random((50, 4)) < 0.3, draw.normal(size=(50, 4))
    truth[:, 3] = False
    said = many.chosen(logits, 0.6)
    assert (said == (1 / (1 + np.exp(-logits)) >= 0.6)).all()
    found = many.figures(said, truth)
    for name, function in (("f1", "f1_score"), ("precision", "precision_score"), ("recall", "recall_score")):
        theirs = getattr(metrics, function)(truth, said, average="micro", zero_division=0)
        assert found[f"micro_{name}"] == pytest.approx(theirs)
    assert found["exact_match"] == pytest.approx(metrics.accuracy_score(truth, said))
    each = many.by_class(said, truth, list("abcd"))
    theirs = metrics.precision_recall_fscore_support(truth, said, zero_division=0)
    assert np.allclose([[row[key] for row in each.values()] for key in ("precision", "recall", "f1", "rows")], theirs)


@pytest.mark.parametrize(
    "said, answers, wanted",
    [
        ("the Eiffel Tower.", ["Eiffel tower"], (1, 1)),
        ("Eiffel Tower in Paris", ["Eiffel tower", "the tower"], (0, 2 * 2 / 6)),
        ("a tower", ["tower bridge", "big tower"], (0, 2 / 3)),
        ("", [], (1, 1)),
        ("no", [], (0, 0)),
        ("", ["yes"], (0, 0)),
        ("the", ["a"], (1, 1)),
        ("one one two", ["one two two"], (0, 2 * 2 / 6)),
    ],
)
def test_extracted_answers_by_squads_definition(said, answers, wanted):
    """Computed by hand: lower case, without punctuation and articles; the F1 of bags of words."""
    assert extracted.against(said, answers) == pytest.approx(wanted)


def test_ranks_one_by_one():
    draw = np.random.default_rng(0)
    rows = [(f"a{i}", f"p{i % 7}", f"n{i}") for i in range(12)]
    table = {text: each / np.linalg.norm(each) for row in rows for text in row for each in [draw.normal(size=5)]}
    vectors = np.array([table[text] for row in rows for text in row])
    found = near.ranks(vectors, rows)
    candidates = dict.fromkeys(text for row in rows for text in row[1:])
    for (anchor, positive, negative), (rank, nearer) in zip(rows, found, strict=True):
        scores = {text: float(table[anchor] @ table[text]) for text in candidates}
        assert rank == 1 + sum(score > scores[positive] + 1e-12 for score in scores.values())
        assert nearer == (scores[positive] > scores[negative])
    told = near.figures(found)
    assert told["mrr@10"] == pytest.approx(np.mean([1 / r if r <= 10 else 0 for r, _ in found]))
    assert told["accuracy@1"] == np.mean(found[:, 0] == 1) and told["triplet_accuracy"] == found[:, 1].mean()


SAID = ["the cat sat on the mat", "hello there", "a quick brown fox jumped"]
RIGHT = ["a cat was sitting on the mat", "hello there", "the quick brown fox jumps over"]


def test_texts_are_compared_by_the_libraries_themselves():
    rouge = pytest.importorskip("rouge_score.rouge_scorer")
    sacrebleu = pytest.importorskip("sacrebleu")
    found, failed = of_texts(list(TEXT_METRICS), SAID, RIGHT)
    assert failed == {}
    scorer = rouge.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    each = [scorer.score(right, said) for said, right in zip(SAID, RIGHT, strict=True)]
    for name in ("rouge1", "rouge2", "rougeL"):
        assert found[name] == pytest.approx(np.mean([row[name].fmeasure for row in each]))
    assert found["bleu"] == pytest.approx(sacrebleu.BLEU().corpus_score(SAID, [RIGHT]).score)
    assert found["chrf"] == pytest.approx(sacrebleu.CHRF().corpus_score(SAID, [RIGHT]).score)
    assert found["exact_match"] == pytest.approx(1 / 3)


def touchy(pairs):
    """The share of equal letters in all; fails on some words."""
    if any("hello" in said for said, _ in pairs):
        raise RecursionError
    return sum(len(said) for said, _ in pairs) / sum(len(right) for _, right in pairs)


def test_an_answer_that_a_metric_fails_on_is_wrong_and_told(monkeypatch):
    """It counts as an empty one; the other metrics, and the other rows, are as they were."""
    monkeypatch.setitem(TEXT_METRICS, "touchy", touchy)
    found, failed = of_texts(["exact_match", "touchy"], SAID, RIGHT)
    assert found == {
        "exact_match": pytest.approx(1 / 3),
        "touchy": touchy([*zip(SAID[::2], RIGHT[::2], strict=True), ("", RIGHT[1])]),
    }
    assert failed == {1: "touchy: it is nested too deep"}


def test_a_metric_that_fails_on_all_together_is_zero_and_each_row_is_named(monkeypatch):
    def crowded(pairs):
        return 1 / (len(pairs) < 3)

    monkeypatch.setitem(TEXT_METRICS, "crowded", crowded)
    assert of_texts(["crowded"], SAID, RIGHT) == (
        {"crowded": 0.0}, dict.fromkeys(range(3), "crowded: ZeroDivisionError: division by zero"),
    )  # fmt: skip


def test_right_answers_that_a_metric_fails_on_are_refused_before_anything_is_written(monkeypatch):
    monkeypatch.setitem(TEXT_METRICS, "crowded", lambda pairs: 1 / (pairs[0][1] != "hello"))
    refuse_references(["crowded"], [Example(row=1, answer="a")])
    with pytest.raises(LuthierError, match="crowded cannot read the right answers: ZeroDivisionError"):
        refuse_references(["crowded"], [Example(row=1, answer="hello")])


def test_an_unknown_metric_and_one_whose_library_is_not_there(monkeypatch):
    with pytest.raises(LuthierError, match="no metric 'rogue1'; did you mean 'rouge1'"):
        check_metrics(["rogue1"])
    monkeypatch.setattr("luthier.data.text_metrics.find_spec", lambda name: None)
    with pytest.raises(LuthierError, match=r"chrf needs sacrebleu: pip install 'luthier\[text-metrics\]'"):
        check_metrics(["exact_match", "chrf"])


def test_metrics_stand_beside_the_scorer(llama, additions, monkeypatch):
    import luthier as lt
    from luthier import data, models

    loaded, examples = models.load(llama), data.load(additions, limit=6)
    found = lt.evaluate(loaded.model, loaded.processor, examples, max_new_tokens=3, metrics=["exact_match"])
    assert list(found.metrics) == ["number", "exact_match"]
    texts = [(each["prediction"], each["answer"]) for each in found.predictions]
    assert found.metrics["exact_match"] == np.mean([said.split() == right.split() for said, right in texts])
    monkeypatch.setitem(TEXT_METRICS, "touchy", lambda pairs: 1 / (pairs[0][0] == ""))
    found = lt.evaluate(loaded.model, loaded.processor, examples, max_new_tokens=3, metrics=["touchy"])
    assert {why for _, why in found.failed} == {"touchy: ZeroDivisionError: division by zero"}
    assert [row for row, _ in found.failed] == [
        row.row for row, (said, _) in zip(examples.rows, texts, strict=True) if said
    ]
    with pytest.raises(LuthierError, match="metrics compare one written answer"):
        lt.evaluate(loaded.model, loaded.processor, examples, samples=2, temperature=1.0, metrics=["exact_match"])

"""Rows whose answer is no one label: they train, and evaluation and prediction see what was learned."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

import luthier as lt
from luthier import data, models
from luthier.core.errors import LuthierError
from luthier.evaluating import evaluate
from luthier.training import Run, Training, train
from luthier.training.estimate import SHORT
from luthier.training.head import start_head
from luthier.training.prepare import prepare
from support.tiny import write_rows

QUICK = Training(epochs=8, batch=8, lr=2e-2, eval_fraction=0.1, eval_every=100, save_every=1000)


def many(count: int = 40) -> list[dict]:
    draw = random.Random(0)
    texts = [
        "".join(draw.choice(("a", "")) + draw.choice(("b", "")) + "x") + str(draw.randrange(90)) for _ in range(count)
    ]
    return [{"text": text, "labels": [c for c in "ab" if c in text]} for text in texts]


def tagged(count: int = 40) -> list[dict]:
    draw, rows = random.Random(1), []
    for _ in range(count):
        words = [draw.choice(("Ann", "went", "to", "Rome", "42")) for _ in range(draw.randint(2, 6))]
        tags = [{"Ann": "B-PER", "Rome": "B-LOC"}.get(word, "O") for word in words]
        rows.append({"tokens": words, "ner_tags": tags})
    return rows


def asked(count: int = 32) -> list[dict]:
    """The answer is the run of Z; every fourth context has none."""
    draw, rows = random.Random(2), []
    for i in range(count):
        before, after = ("".join(draw.choice("abc ") for _ in range(draw.randint(1, 9))) for _ in range(2))
        answer = "" if i % 4 == 3 else "ZZ"
        found = {"text": [answer], "answer_start": [len(before)]} if answer else {"text": [], "answer_start": []}
        rows.append({"question": "Q?", "context": f"{before}{answer}{after}.", "answers": found})
    return rows


def near(count: int = 32) -> list[dict]:
    draw = random.Random(3)
    words = ["".join(draw.choice("abcdefgh") for _ in range(4)) for _ in range(count)]
    return [
        {"anchor": word, "positive": word.upper(), "negative": words[i - 1].upper()} for i, word in enumerate(words)
    ]


def fitted(base: str, tmp_path, rows: list[dict], form=None, **more):
    source = write_rows(tmp_path / "rows.jsonl", rows)
    fields = {"training": QUICK, **more}
    result = train(Run(base, source, form or lt.LoRA(rank=4), out=str(tmp_path / "run"), **fields), progress=False)
    return result, source


def again(base: str, result, examples):
    """Evaluation by the saved adapter on a fresh base."""
    torch.manual_seed(99)
    fresh = models.load(base, task=examples.task, labels=examples.labels)
    lt.load(fresh.model, result.adapter)
    return evaluate(fresh.model, fresh.processor, examples)


def test_several_classes(bert, tmp_path):
    result, source = fitted(bert, tmp_path, many())
    examples = data.load(source)
    assert result.model.config.problem_type == "multi_label_classification" and examples.labels == ["a", "b"]
    found = evaluate(result.model, result.processor, examples)
    assert next(iter(found.metrics)) == "micro_f1" and found.score > 0.95 and found.loss < 0.3
    assert set(found.classes) == {"a", "b"} and found.predictions[0]["answer"] == many()[0]["labels"]
    saved = again(bert, result, examples)
    assert (saved.loss, saved.predictions) == (found.loss, found.predictions)


def test_more_classes_than_the_estimate_reads_tokens(bert, tmp_path):
    rows = [{"text": f"{i}", "labels": [f"c{i}", "c0"][: 1 + (i > 0)]} for i in range(SHORT + 6)]
    result, _ = fitted(bert, tmp_path, rows, training=replace(QUICK, epochs=1, eval_fraction=0))
    assert result.model.config.num_labels == SHORT + 6


def test_a_new_head_starts_at_the_odds_of_its_classes(bert, tmp_path):
    """b_c = log (n_c + 1/2) / (N - n_c + 1/2), by hand: of 8 rows 6 have a, 1 has b, none has c."""
    given = [["a"], ["a"], ["a"], ["a"], ["a"], ["a", "b"], [], []]
    rows = [{"text": f"x{i}", "labels": labels} for i, labels in enumerate(given)]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    run = Run(bert, source, lt.LoRA(rank=4), training=replace(QUICK, eval_fraction=0))
    prepared = prepare(run)
    loaded = models.load(bert, task="multi-label", labels=["b", "a"])
    weight = loaded.model.classifier.weight.clone()
    start_head(loaded, prepared)
    torch.testing.assert_close(loaded.model.classifier.bias, torch.tensor([1.5 / 7.5, 6.5 / 2.5]).log())
    torch.testing.assert_close(loaded.model.classifier.weight, weight)
    loaded.new_modules.clear()  # a head of the checkpoint stays as it is
    loaded.model.classifier.bias.data.zero_()
    start_head(loaded, prepared)
    assert not loaded.model.classifier.bias.any()


def test_tagged_words(bert, tmp_path):
    result, source = fitted(bert, tmp_path, tagged())
    examples = data.load(source)
    assert examples.task == "token-classification" and examples.unread == ()
    found = evaluate(result.model, result.processor, examples)
    assert next(iter(found.metrics)) == "f1" and found.score == 1.0 and list(found.classes) == ["LOC", "PER"]
    saved = again(bert, result, examples)
    assert (saved.loss, saved.predictions) == (found.loss, found.predictions)


def test_extracted_answers(bert, tmp_path):
    """Also where the context is several windows, which a bound of 24 tokens makes it."""
    settings = replace(QUICK, epochs=30, lr=3e-3, max_length=24)
    result, source = fitted(bert, tmp_path, asked(), lt.Full(), training=settings)
    examples = data.load(source)
    assert examples.task == "question-answering"
    found = evaluate(result.model, result.processor, examples, max_length=24)
    assert list(found.metrics) == ["f1", "exact_match"] and found.score > 0.8
    assert sum(each["prediction"] == "" == "".join(each["answer"]) for each in found.predictions) > 5


@pytest.mark.parametrize("form", [lt.LoRA(rank=4), lt.LoReFT(rank=4), lt.WeGeFT(share="type")])
def test_texts_near_each_other(bert, tmp_path, form):
    settings = replace(QUICK, epochs=8, lr=5e-3)
    result, source = fitted(bert, tmp_path, near(), form, objective=lt.InfoNCE(), training=settings)
    examples = data.load(source)
    assert examples.task == "embedding" and result.losses[-1][1] < result.losses[0][1]
    before = models.load(bert, task="embedding")
    a, b = (evaluate(each.model, each.processor, examples) for each in (before, result))
    assert list(b.metrics) == ["mrr@10", "accuracy@1", "accuracy@10", "triplet_accuracy"] and b.score > a.score
    assert again(bert, result, examples).predictions == b.predictions


def test_an_objective_that_cannot(bert, tmp_path):
    with pytest.raises(LuthierError, match="the rows are for token-classification, and label_smoothing does not"):
        fitted(bert, tmp_path, tagged(), objective=lt.LabelSmoothing())
    with pytest.raises(LuthierError, match=r"texts that belong near each other .* and sft reads answers"):
        fitted(bert, tmp_path, near(), objective=lt.SFT())

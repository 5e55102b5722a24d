"""Answers that evaluations write: how long they may be, to which rows, and what is refused or told of them."""

from __future__ import annotations

import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import luthier as lt
from luthier import data
from luthier.core.contracts.example import Scorer
from luthier.core.errors import LuthierError
from luthier.data import text_metrics
from luthier.training import Run, Training
from luthier.training.pack import _of_run
from luthier.training.prepare import prepare
from luthier.training.together.meeting import why_alone
from luthier.training.writing import MORE, Asked, Writer, asked_of, writes
from support.tiny import save_model, tokenizer, write_rows

THOUGHT = "one and two are three, so that the answer is 3"


def run(best: str, **changes) -> Run:
    return Run("model", "rows.jsonl", lt.LoRA(rank=2), training=Training(best=best), **changes)


def held_of(tmp_path, rows=None) -> data.Examples:
    rows = rows or [{"instruction": f"{i} + 2", "output": THOUGHT, "answer": "3"} for i in range(3)]
    return data.load(write_rows(tmp_path / "rows.jsonl", rows))


def asked(held, best="number", features=None, positions=None, **changes) -> Asked:
    words = tokenizer()
    features = features or data.encode_all(held, words, max_length=None)
    return asked_of(run(best, **changes), held, features, words, positions)


def learned(held) -> int:
    return max(sum(each != -100 for each in f["labels"]) for f in data.encode_all(held, tokenizer(), max_length=None))


def writer(asked: Asked, name: str, said: list[str]) -> Writer:
    made = Writer(run(name), torch.nn.Module(), None, asked)
    made.sampler = lambda *given: [SimpleNamespace(text=text) for text in said]  # type: ignore[assignment]
    return made


def test_an_answer_may_be_as_long_as_what_is_learned_and_not_as_its_reference(tmp_path):
    held = held_of(tmp_path)
    assert held.rows[0].answer == "3" and learned(held) > 20
    assert {ask.max_tokens for ask in asked(held).asks} == {learned(held) + MORE}


def test_an_answer_may_be_as_long_as_the_objective_samples_it(tmp_path):
    objective = lt.GRPO(reward=("data",), max_tokens=500)
    assert {ask.max_tokens for ask in asked(held_of(tmp_path), objective=objective).asks} == {500}


def test_no_answer_goes_beyond_the_positions_of_the_model(tmp_path):
    held = held_of(tmp_path)
    longest = max(len(ask.prompt) for ask in asked(held).asks)
    assert {len(ask.prompt) + ask.max_tokens for ask in asked(held, positions=longest + 5).asks} == {longest + 5}
    with pytest.raises(LuthierError, match=f"row 1: its prompt has {longest} tokens and the model {longest} positions"):
        asked(held, positions=longest)


def test_rows_that_were_left_out_are_not_written_to(tmp_path):
    held = held_of(tmp_path)
    features = [f for f in data.encode_all(held, tokenizer(), max_length=None) if f["row"] != 2]
    found = asked(held, features=features)
    assert [row.row for row in found.held.rows] == [1, 3] and len(found.asks) == 2


def test_a_prepared_run_asks_what_fits_its_model(tmp_path):
    """The row that is too long is left out, and the answers to others end where GPT-2's 128 positions do."""
    model = save_model(tmp_path / "gpt2", "gpt2")
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": f"{i}+1=", "completion": str(i + 1)} for i in range(4)])
    others = [{"prompt": "a" * length + "=", "completion": str(length)} for length in (10, 300, 115)]
    wanted = replace(run("number", skip_bad_rows=True), model=model, data=rows)
    prepared = prepare(replace(wanted, eval_data=write_rows(tmp_path / "held.jsonl", others)))
    assert prepared.asked is not None and [row.row for row in prepared.asked.held.rows] == [1, 3]
    short, long = prepared.asked.asks
    assert short.max_tokens > long.max_tokens and len(long.prompt) + long.max_tokens == 128
    assert prepare(replace(wanted, training=Training())).asked is None


def test_no_evaluation_of_a_run_runs_what_a_model_writes():
    """Only `luthier evaluate --execute` does."""
    assert "tests" in data.SCORERS and not writes(run("tests"), "causal-lm") and writes(run("number"), "causal-lm")


def test_gym_scores_gym_tasks_alone(tmp_path):
    with pytest.raises(LuthierError, match=r"gym, the scorer of gym: sources, and .*rows\.jsonl is none"):
        asked(held_of(tmp_path), best="gym")


def test_references_that_a_metric_cannot_read_are_refused(tmp_path, monkeypatch):
    def fails(pairs):
        raise ValueError("no such words")

    monkeypatch.setitem(text_metrics.TEXT_METRICS, "chrf", fails)
    monkeypatch.setattr(text_metrics, "NEEDS", {})
    with pytest.raises(LuthierError, match="chrf cannot read the right answers"):
        asked(held_of(tmp_path), best="chrf")


def test_answers_without_a_score_are_told_of_once(tmp_path):
    def fails(prediction, example):
        raise ValueError("odd")

    found = asked(held_of(tmp_path))
    found = replace(found, held=replace(found.held, scorer=Scorer("number", fails)))
    made = writer(found, "number", ["3", "3", "3"])
    with pytest.warns(UserWarning, match="number failed on 3 of 3 written answers.* to row 1: ValueError: odd"):
        assert made.figures() == {"number": 0.0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert made.figures() == {"number": 0.0}
        assert writer(asked(held_of(tmp_path)), "number", ["3", "4", "3"]).figures() == {"number": pytest.approx(2 / 3)}


def test_answers_that_a_metric_fails_on_are_told_of(tmp_path, monkeypatch):
    def fails(pairs):
        if any(said == "bad" for said, _ in pairs):
            raise ValueError("odd")
        return float(len(pairs))

    monkeypatch.setitem(text_metrics.TEXT_METRICS, "chrf", fails)
    with pytest.warns(UserWarning, match="chrf failed on 1 of 3 written answers.* to row 2: .*odd"):
        assert writer(asked(held_of(tmp_path)), "chrf", ["3", "bad", "3"]).figures() == {"chrf": 3.0}


def test_a_figure_of_several_classes_is_no_written_answer():
    """`exact_match` is a figure of both."""
    assert _of_run(run("exact_match"), "causal-lm") == "its evaluations write answers"
    assert _of_run(run("exact_match"), "multi-label") is None
    assert why_alone(run("exact_match")) == "its evaluations write answers (best)"
    assert why_alone(run("exact_match", task="multi-label")) == "it is for multi-label"

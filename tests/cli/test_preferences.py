"""Pairs through the command line: fitted by the objective that they call for, evaluated as what they are."""

from __future__ import annotations

import json

import pytest

from support.cli_tools import write_rows

SETTINGS = ("--method", "lora", "--rank", 4, "--steps", 12, "--batch", 4, "--lr", 0.02, "--eval-fraction", 0.25)


@pytest.fixture
def pairs(tmp_path):
    words = ("one", "two", "up", "on") * 3
    rows = [{"prompt": f"say {word} {i}", "chosen": word, "rejected": f"no {word}"} for i, word in enumerate(words)]
    return write_rows(tmp_path / "pairs.jsonl", rows)


def test_pairs_are_fitted_and_evaluated(call, llama, pairs, tmp_path):
    done = call("train", llama, pairs, *SETTINGS, "--out", tmp_path / "run")
    assert done.code == 0 and f"Next: luthier evaluate {llama} {pairs}" in done.out, done.err
    done = call("evaluate", llama, pairs, "--adapter", tmp_path / "run")
    assert done.code == 0 and "accuracy 100.0%" in done.out and "margin" in done.out, done.err
    done = call("train", llama, pairs, *SETTINGS, "--objective", "dpo", "--reference", tmp_path / "run", "--dry-run")
    assert done.code == 0 and "reference" in done.out, done.err
    done = call("evaluate", llama, pairs, "--json")
    assert done.code == 0 and json.loads(done.out)["metric"] == "likelier"
    done = call("evaluate", llama, pairs, "--scorer", "exact_match")
    assert done.code == 2 and "pairs are compared" in done.err


def test_a_reward_model_needs_its_head(call, llama, pairs, tmp_path):
    done = call("train", llama, pairs, *SETTINGS, "--objective", "reward", "--out", tmp_path / "run")
    assert done.code == 0, done.err
    done = call("evaluate", llama, pairs, "--adapter", tmp_path / "run", "--json")
    report = json.loads(done.out)
    assert report["metric"] == "accuracy" and report["score"] == 1.0 and report["metrics"]["margin"] > 0
    done = call("evaluate", llama, pairs, "--task", "reward")
    assert done.code == 2 and "never trained" in done.err


def test_judged_answers_are_no_pairs(call, llama, tmp_path):
    rows = [{"prompt": "say one", "completion": word, "label": word == "one"} for word in ("one", "two")]
    done = call("evaluate", llama, write_rows(tmp_path / "judged.jsonl", rows))
    assert done.code == 2 and "measured on pairs" in done.err


def test_show_marks_both_answers(call, llama, pairs):
    done = call("show", llama, pairs)
    assert done.code == 0 and "'one<|im_end|>'" in done.out and "'no one<|im_end|>'" in done.out

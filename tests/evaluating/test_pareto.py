"""The checkpoints of a plan: both scores of each, and which are dominated."""

from __future__ import annotations

import json

import pytest

import luthier as lt
from luthier.evaluating.front import Front, Point, flagged
from luthier.evaluating.pareto import pareto
from luthier.training.stages import run_plan
from support.tiny import sums, write_rows


def point(name: str, task: float, general: float) -> Point:
    return Point(name, 1, task, general, (task, task), (general, general))


def test_dominated_are_those_that_another_equals_or_beats():
    points = [point("a", 0.5, 2.0), point("b", 0.6, 2.0), point("c", 0.4, 1.5), point("d", 0.6, 2.0)]
    found = flagged(points, "exact_match", "loss")  # of a loss, less is better
    assert [each.dominated_by for each in found] == ["b 1", None, None, None]
    higher = flagged(points, "exact_match", "accuracy")
    assert [each.dominated_by for each in higher] == ["b 1", None, "a 1", None]
    assert [each.stage for each in Front(higher, "exact_match", "accuracy").best] == ["b", "d"]


def test_every_checkpoint_of_a_plan_is_scored_once(llama, tmp_path, monkeypatch):
    import yaml

    write_rows(tmp_path / "sums.jsonl", sums(6))
    write_rows(tmp_path / "texts.jsonl", [{"text": f"the sum of {i} and {i}"} for i in range(4)])
    training = {"steps": 4, "batch": 4, "eval_fraction": 0.0, "lr": 0.05}
    values = {
        "model": llama,
        "out": str(tmp_path / "out"),
        "method": "lora",
        "training": training,
        "stage": [{"name": "pretrain", "data": "texts.jsonl"}, {"name": "sft", "data": "sums.jsonl"}],
        "measure": {"task": "sums.jsonl", "general": "texts.jsonl", "checkpoints": 2, "max_new_tokens": 2},
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(values))
    done = run_plan(tmp_path / "plan.yaml", progress=False)
    heard: list[str] = []
    front = pareto(done.folder, told=heard.append, progress=False)
    names = ["base", "pretrain 2", "pretrain 4", "sft 2", "sft 4"]
    assert [each.name for each in front.points] == names and len(heard) == 5
    assert front.general_metric == "loss" and front.points[2].general < front.points[0].general
    loaded = lt.model(llama)
    lt.load(loaded.model, done.adapter)
    texts = lt.load_data(tmp_path / "texts.jsonl")
    last = lt.evaluate(loaded.model, loaded.processor, texts, progress=False)
    assert front.points[-1].general == pytest.approx(last.score, abs=1e-6)
    kept = json.loads((done.folder / "pareto.json").read_text())
    assert [each["dominated"] for each in kept["points"]] == [each.dominated_by is not None for each in front.points]
    assert (done.folder / "pareto.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr("luthier.evaluating.pareto.evaluate", None)  # nothing is scored again
    assert pareto(done.folder, progress=False) == front

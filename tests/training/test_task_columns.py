"""Runs whose rows are of several tasks: mixed sources, skills averaged by the task, experts chosen by token."""

from __future__ import annotations

import json

import pytest
import torch

import luthier as lt
from luthier import data, models
from luthier.core.adapters.attach import state_of
from luthier.core.adapters.control import watched
from luthier.evaluating import evaluate, generate
from luthier.methods.updates.two_speed import TwoSpeed
from luthier.training import Run, Training, train
from support.tiny import sums, write_rows

SETTINGS = Training(steps=12, batch=4, lr=2e-2, eval_fraction=0, warmup=0)


@pytest.fixture(scope="module")
def mix(tmp_path_factory) -> str:
    """Two tasks that ask alike and answer apart, one file each."""
    folder = tmp_path_factory.mktemp("mix")
    plus = [row | {"completion": "aaa"} for row in sums(24)]
    spelt = [{"prompt": row["prompt"], "completion": "zzz"} for row in sums(24)]
    first, second = write_rows(folder / "plus.jsonl", plus), write_rows(folder / "spelt.jsonl", spelt)
    return f"mix:plus={first},spelt={second}"


def test_a_mix_names_the_tasks_and_keeps_the_rows(mix):
    rows = data.load(mix, columns=("task",)).rows
    assert [row.meta["task"] for row in rows] == ["plus"] * 24 + ["spelt"] * 24
    assert len({row.row for row in rows}) == 48
    with pytest.raises(lt.LuthierError, match="write mix:name=source"):
        data.load("mix:plus=a.jsonl,b.jsonl")


def test_a_bad_row_of_a_mix_is_told_by_its_source(tmp_path):
    good = write_rows(tmp_path / "good.jsonl", sums(3))
    bad = write_rows(tmp_path / "bad.jsonl", [*sums(2), {"prompt": "1"}])
    with pytest.raises(lt.LuthierError, match="b:3"):
        data.load(f"mix:a={good},b={bad}")


def test_skills_learn_each_task_and_answer_by_it(llama, mix, tmp_path):
    form = lt.MHR(rank=4, skills=3, tasks=("spelt", "plus"))
    run = Run(llama, mix, form, out=str(tmp_path / "run"), update=TwoSpeed(ratio=20.0), training=SETTINGS)
    result = train(run, progress=False)
    assert result.losses[-1][1] < 0.5 * result.losses[0][1]
    loaded = models.load(llama)
    lt.load(loaded.model, result.adapter)
    rows = data.load(mix, columns=("task",))
    assert evaluate(loaded.model, loaded.processor, rows, max_new_tokens=3, progress=False).score > 0.9
    prompts = ["7+1=", "9+2="]
    assert generate(loaded.model, loaded.processor, prompts, max_new_tokens=3, tasks=["plus", "spelt"]) == [
        "aaa",
        "zzz",
    ]
    assert generate(loaded.model, loaded.processor, prompts, max_new_tokens=3, tasks="spelt") == ["zzz", "zzz"]
    with pytest.raises(lt.LuthierError, match="1 tasks for 2 prompts"):
        generate(loaded.model, loaded.processor, prompts, tasks=["plus"])
    with pytest.raises(lt.LuthierError, match="none was given"):
        generate(loaded.model, loaded.processor, prompts)


def test_rows_without_a_known_task_are_refused_before_the_weights(llama, mix, additions, tmp_path):
    for source, words in ((additions, "40 rows .* have no 'task'"), (mix, "no task 'plus'")):
        form = lt.MHR(skills=2, tasks=("one", "two"))
        with pytest.raises(lt.LuthierError, match=words):
            train(Run(llama, source, form, out=str(tmp_path / "run"), training=SETTINGS), progress=False)


def test_gates_learn_whose_row_it_is_and_go_on_after_a_stop(llama, mix, tmp_path):
    """Two finished adapters, gates that are told the tasks, experts that stay as they are."""
    sources = dict(each.split("=") for each in mix.removeprefix("mix:").split(","))
    for name, source in sources.items():
        form = lt.LoRA(rank=2) if name == "plus" else lt.WeGeFT(rank=3)
        train(Run(llama, source, form, out=str(tmp_path / name), training=SETTINGS), progress=False)
    experts = tuple(f"{name}={tmp_path / name}" for name in sources)
    form = lt.MeteoRA(experts=experts, rank=3, train="router")
    run = Run(llama, mix, form, out=str(tmp_path / "gates"), objective=lt.Routing(beta=5.0), training=SETTINGS)
    result = train(run, progress=False)
    assert result.losses[-1][1] < result.losses[0][1]
    fresh = models.load(llama).model
    lt.attach(fresh, form)
    trained = {key: t for part in state_of(result.model).components for key, t in lt.trainable(result.model).items()}
    assert all(key.endswith("gate") and not torch.equal(t, lt.trainable(fresh)[key]) for key, t in trained.items())
    spec = json.loads((result.adapter / "adapter.json").read_text())
    assert spec["parts"][0]["settings"]["experts"] == list(experts)
    again = train(run, resume=True, progress=False)
    assert again.losses == result.losses
    rows = data.load(mix, columns=("task",))
    words = data.encode_all(rows, result.processor, max_length=100)
    batch = data.collator_for("causal-lm", result.processor)(words)
    with torch.no_grad(), watched(result.model) as routes:
        result.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    answers = batch["labels"] != -100
    own = torch.tensor([0] * 24 + [1] * 24)[:, None].expand_as(answers)[answers]
    right = torch.stack([(route.logits.argmax(-1)[answers] == own).double().mean() for route in routes])
    assert right.mean() > 0.7


def test_a_source_that_is_not_there_is_told_before_the_data(llama, tmp_path):
    form = lt.MeteoRA(experts=(f"a={tmp_path}", f"b={tmp_path}"))
    with pytest.raises(lt.LuthierError, match="holds no adapter"):
        train(Run(llama, "no-such-file.jsonl", form, out=str(tmp_path / "run"), training=SETTINGS), progress=False)


def test_a_router_over_experts_that_do_nothing_is_refused(llama, tmp_path):
    for form in (lt.MeteoRA(experts=("a", "b"), train="router"), lt.MHR(train="router")):
        with pytest.raises(lt.LuthierError, match="nothing to choose among"):
            train(Run(llama, "no-such-file.jsonl", form, out=str(tmp_path / "run"), training=SETTINGS), progress=False)

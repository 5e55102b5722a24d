"""Sequences of tasks: what is the same as what, what a kill leaves, what is measured and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import luthier as lt
from luthier.core.contracts.component import find
from luthier.training import Run, Training, train
from luthier.training.sequences import TaskSequence, carry_out
from luthier.training.sequences import run as engine
from luthier.training.sequences.matrix import Matrix, summary
from luthier.training.sequences.memory import repeated, reservoir
from luthier.training.sequences.prepare import planned
from luthier.training.sequences.spec import ways
from luthier.training.trainer import Trainer
from support import drawing
from support.tiny import write_rows

SHORT = Training(epochs=6, batch=4, lr=1e-2, eval_fraction=0.25, save_every=1000, schedule="constant", warmup=0.0)
FORM = lt.LoRA(rank=2)
LETTERS = ("ab", "cd", "ef")


def letters(which: str, count: int, seed: int) -> list[dict]:
    draw = np.random.default_rng(seed)
    found = []
    for i in range(count):
        letter = which[i % len(which)]
        found.append({"text": "".join(draw.choice(list("uvwxyz"), 3)) + letter * 4, "label": letter})
    return found


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> tuple[str, ...]:
    folder = tmp_path_factory.mktemp("tasks")
    return tuple(write_rows(folder / f"{which}.jsonl", letters(which, 16, i)) for i, which in enumerate(LETTERS))


def accuracies(model, processor, examples, task) -> list[float]:
    """What `luthier continue` takes from luthier.evaluating."""
    from luthier.evaluating import evaluate

    return [line["score"] for line in evaluate(model, processor, examples, task=task, progress=False).predictions]


def begun(model: str, tasks, out: Path, by: str = "naive", weight: float | None = None, **more):
    spec = TaskSequence(
        tuple(tasks),
        by,
        **{k: v for k, v in more.items() if k in ("memory", "replay_share", "adapters", "tests", "score")},
    )
    changes = {k: v for k, v in more.items() if k in ("training", "form")}
    run = replace(Run(model, tasks[0], FORM, out=str(out), training=SHORT), **changes)
    return spec.applied(run, {} if weight is None else {"weight": weight}), spec


def done(model: str, tasks, out: Path, by: str = "naive", resume: bool = False, **more):
    run, spec = begun(model, tasks, out, by, **more)
    return carry_out(run, spec, answers=accuracies, resume=resume, progress=False)


def same(left: Path, right: Path) -> bool:
    a, b = (load_file(folder / "adapter.safetensors") for folder in (left, right))
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def naive(bert, tasks, tmp_path_factory):
    with drawing.drawn():
        return done(bert, tasks[:2], tmp_path_factory.mktemp("naive") / "run", score="loss")


def test_a_sequence_fills_its_folder_and_forgets(naive):
    found = {path.name for path in naive.folder.iterdir() if not path.name.startswith(".")}
    assert found == {"sequence.json", "matrix.json", "result.json", "matrix.png", "tasks", "adapter"}
    assert (naive.folder / "matrix.png").stat().st_size > 5000
    told = json.loads((naive.folder / "result.json").read_text())
    assert np.shape(told["matrix"]["mean"]) == (3, 2) and told["tasks"] == ["1-ab", "2-cd"]
    cells = naive.matrix.means()
    assert cells[1, 0] > -0.2 and cells[2, 1] > cells[1, 1] + 0.5 and cells[2, 0] < cells[1, 0] - 0.5
    assert naive.figures["forgetting"]["value"] == pytest.approx(cells[1, 0] - cells[2, 0])
    assert same(naive.folder / "adapter", naive.adapters[-1])


BRIEF = replace(SHORT, epochs=2)


@pytest.fixture(scope="module")
def brief(bert, tasks, tmp_path_factory):
    return done(bert, tasks[:2], tmp_path_factory.mktemp("brief") / "run", training=BRIEF)


@pytest.mark.parametrize("by", ["ewc", "si", "rwalk"])
def test_without_weight_a_penalty_is_naive_to_the_bit(bert, tasks, brief, tmp_path, by):
    other = done(bert, tasks[:2], tmp_path / "run", by, weight=0.0, training=BRIEF)
    assert same(other.adapters[1], brief.adapters[1])
    assert other.kept["bytes"] > 0


def test_replay_forgets_less_and_ewc_acts_from_the_second_task_on(bert, tasks, naive, tmp_path):
    replayed = done(bert, tasks[:2], tmp_path / "replay", "replay", memory=8, score="loss")
    assert replayed.figures["forgetting"]["value"] < 0.7 * naive.figures["forgetting"]["value"]
    assert replayed.kept["rows"] == 8 and replayed.kept["tokens"] > 8
    held = done(bert, tasks[:2], tmp_path / "ewc", "ewc", weight=1e4, score="loss")
    assert same(held.adapters[0], naive.adapters[0]) and not same(held.adapters[1], naive.adapters[1])


class Killed(BaseException):
    """Instead of a signal."""


@pytest.mark.parametrize("by", ["rwalk", "agem"])
def test_killed_within_and_between_tasks_it_goes_on_exactly(bert, tasks, tmp_path, monkeypatch, by):
    more: dict = {} if by == "agem" else {"weight": 5.0}
    more |= {"form": lt.LoRA(rank=2, dropout=0.2), "training": replace(BRIEF, save_every=2)}
    whole = done(bert, tasks[:2], tmp_path / "whole", by, **more)
    steps, true = [0], Trainer.training_step

    def dying(self, *args, **kwargs):
        steps[0] += 1
        if steps[0] in (4, 10):  # within the first and within the second task
            raise Killed
        return true(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", dying)
    tested = engine._tested

    def untested(plan, loaded, answers):
        steps.append(0)
        if len(steps) == 3:  # the first task is trained, and not yet tested
            raise Killed
        return tested(plan, loaded, answers)

    monkeypatch.setattr(engine, "_tested", untested)
    for _ in range(3):
        with pytest.raises(Killed):
            done(bert, tasks[:2], tmp_path / "killed", by, resume=True, **more)
    last = done(bert, tasks[:2], tmp_path / "killed", by, resume=True, **more)
    assert steps[0] > 10 and same(last.adapters[1], whole.adapters[1])
    assert last.matrix.to_dict() == whole.matrix.to_dict()


def test_adapters_for_each_task_forget_nothing(bert, tasks, tmp_path, brief):
    found = done(bert, tasks[:2], tmp_path / "run", adapters="each", training=BRIEF)
    assert found.figures["forgetting"]["value"] == 0 and not (found.folder / "adapter").exists()
    assert same(found.adapters[0], brief.adapters[0]) and not same(found.adapters[1], brief.adapters[1])


def test_joint_and_cumulative_train_on_all_rows(bert, tasks, tmp_path):
    joint = done(bert, tasks[:2], tmp_path / "joint", "joint", training=BRIEF)
    assert joint.figures.keys() == {"average accuracy"} and len(joint.adapters) == 1
    plan = planned(*begun(bert, tasks, tmp_path / "c", "cumulative"))
    assert [len(plan.mixed(i).train) for i in range(3)] == [12, 24, 36]


def test_a_changed_sequence_is_not_gone_on_with(bert, tasks, naive):
    with pytest.raises(lt.LuthierError, match="holds a sequence already"):
        done(bert, tasks, naive.folder)
    with pytest.raises(lt.LuthierError, match="holds another sequence, whose run"):
        done(bert, tasks, naive.folder, resume=True, training=replace(SHORT, lr=1e-3))


def test_rows_without_answers_are_measured_by_their_loss(llama, tmp_path):
    rows = [
        write_rows(tmp_path / f"{i}.jsonl", [{"text": f"{c * 6}{j}"} for j in range(8)]) for i, c in enumerate("ab")
    ]
    run, spec = begun(llama, rows, tmp_path / "run", training=replace(SHORT, epochs=1))
    found = carry_out(run, spec, answers=accuracies, progress=False)
    assert (found.matrix.means() < 0).all() and found.matrix.means()[2, 1] > found.matrix.means()[0, 1]


def test_tasks_without_answers_beside_others_that_have_them_are_told(llama, tmp_path):
    asked = write_rows(tmp_path / "asked.jsonl", [{"prompt": f"{i} is", "completion": f"{i}"} for i in range(8)])
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": f"abc {i}"} for i in range(8)])
    for tasks, told in (
        ((asked, texts), "2-texts has no answers"),
        ((texts, asked, texts), "1-texts, 3-texts have no"),
    ):
        run, spec = begun(llama, tasks, tmp_path / "x")
        plan = planned(run, spec)
        assert not engine.scored(plan) and told in engine.notes(plan)[-1]
        with pytest.raises(lt.LuthierError, match=r"texts (has|have) none"):
            engine.scored(replace(plan, spec=replace(spec, score="answers")))
    assert engine.notes(planned(*begun(llama, (texts, texts), tmp_path / "y")))[-1:] != engine.notes(plan)[-1:]


# --- figures ----------------------------------------------------------------------------------------


def test_the_figures_are_those_of_their_equations():
    cells = np.array([[0.1, 0.2, 0.3], [0.9, 0.4, 0.3], [0.5, 0.8, 0.2], [0.6, 0.7, 1.0]])
    best = np.array([0, 1, 0])
    found = summary(cells, best)
    assert found["average accuracy"] == pytest.approx((0.6 + 0.7 + 1.0) / 3)
    assert found["backward transfer"] == pytest.approx(((0.6 - 0.9) + (0.7 - 0.8)) / 2)
    assert found["forward transfer"] == pytest.approx(((0.4 - 0.2) + (0.2 - 0.3)) / 2)
    assert found["forgetting"] == pytest.approx(((0.9 - 0.6) + (0.8 - 0.7)) / 2)


def test_intervals_hold_the_figure_and_shrink_with_rows():
    draw = np.random.default_rng(0)

    def matrix(rows: int) -> Matrix:
        scores = [[(draw.random(rows) < p).astype(float) for p in (0.5, 0.6)] for _ in range(3)]
        return Matrix(["a", "b"], scores[0], {0: scores[1], 1: scores[2]})

    widths = []
    for rows in (30, 3000):
        found = matrix(rows).figures()
        for each in found.values():
            assert each["low"] <= each["value"] <= each["high"]
        widths.append(found["average accuracy"]["high"] - found["average accuracy"]["low"])
    assert widths[1] < widths[0] / 5
    again = Matrix.of(json.loads(json.dumps(matrix(5).to_dict())))
    assert again.whole and again.means().shape == (3, 2)


def test_the_reservoir_is_uniform_and_goes_on_from_its_draws():
    times = np.zeros(30)
    for seed in range(600):
        for task, row in reservoir([10, 20], 6, seed):
            times[task * 10 + row] += 1
    expected = 600 * 6 / 30
    assert ((times - expected) ** 2 / expected).sum() < 58  # χ² with 29 degrees of freedom, 0.1%
    kept = set(reservoir([10, 20], 6, 1)) & {(0, row) for row in range(10)}
    assert kept <= set(reservoir([10], 6, 1))
    assert len(reservoir([3], 6, 0)) == 3
    mixed = repeated(reservoir([10], 4, 0), 12, 0.5, 0)
    assert len(mixed) == 12 and {mixed.count(row) for row in set(mixed)} == {3}


# --- what is refused --------------------------------------------------------------------------------


def test_bad_input_is_told_before_any_weights(bert, llama, tasks, additions, tmp_path, monkeypatch):
    monkeypatch.setattr("luthier.models.load", lambda *a, **k: pytest.fail("weights were loaded"))
    unlabelled = write_rows(tmp_path / "u.jsonl", [{"text": f"abc {i}"} for i in range(8)])
    long = write_rows(tmp_path / "l.jsonl", [{"text": f"abc {i}" * 9000} for i in range(8)])  # no kind could encode it
    alone = [write_rows(tmp_path / f"{n}.jsonl", [{"text": f"{n} {i}", "label": "z"} for i in range(8)]) for n in "pq"]
    cases = [
        ((alone,), {}, r"all tasks together have one class \(z\)"),
        ((tasks[:1],), {}, "1 task is not a sequence"),
        ((tasks,), {"by": "ewx"}, "no way 'ewx'.*ewc"),
        ((tasks,), {"by": "ewc", "memory": 3}, "ewc keeps no rows"),
        ((tasks,), {"by": "agem", "replay_share": 0.5}, "agem mixes no kept rows in"),
        ((tasks,), {"by": "ewc", "adapters": "each"}, "shares nothing"),
        (((tasks[0], unlabelled),), {}, "has rows for causal-lm.*no label.*classification"),
        (((tasks[0], long),), {}, "has rows for causal-lm.*no label.*classification"),
        (((unlabelled, tasks[0]),), {}, "u.jsonl has rows for causal-lm.*no label.*classification"),
        (((long, tasks[0]),), {}, "l.jsonl has rows for causal-lm.*no label.*classification"),
        (((tasks[0], tmp_path / "none.jsonl"),), {}, "none.jsonl"),
        ((tasks,), {"training": replace(SHORT, eval_fraction=0.0)}, "leaves no row to test on"),
    ]
    for (given,), more, said in cases:
        with pytest.raises(lt.LuthierError, match=said):
            done(bert, [str(each) for each in given], tmp_path / "x", **more)
    assert not (tmp_path / "x" / "sequence.json").exists()


def test_what_needs_earlier_tasks_is_refused_in_a_run_of_one(bert, tasks, tmp_path):
    alone = Run(bert, tasks[0], FORM, out=str(tmp_path / "run"))
    for run in (replace(alone, penalty=lt.EWC()), replace(alone, update=lt.AGEM())):
        with pytest.raises(lt.LuthierError, match="goes by tasks that were trained before"):
            train(run, progress=False)
    short = replace(SHORT, epochs=2)
    held = Run(bert, tasks[0], FORM, out=str(tmp_path / "a"), training=short, penalty=lt.L2SP(weight=10.0))
    free = replace(held, out=str(tmp_path / "b"), penalty=lt.L2SP(weight=0.0))
    plain = replace(held, out=str(tmp_path / "c"), penalty=None)
    held, free, plain = (train(each, progress=False).adapter for each in (held, free, plain))
    assert same(free, plain) and not same(held, plain)


def test_a_class_of_its_own_and_shared_rows_are_told(bert, tasks, tmp_path):
    lone = write_rows(tmp_path / "lone.jsonl", letters("a", 8, 5))
    plan = planned(*begun(bert, (tasks[0], lone), tmp_path / "x"))
    assert any("has one class (a)" in note for note in plan.notes), plan.notes
    second, third = (write_rows(tmp_path / f"{i}.jsonl", letters("ab", 8, i)) for i in (7, 8))
    plan = planned(*begun(bert, (tasks[0], second), tmp_path / "y", tests=(second, third)))
    assert len(plan.notes) == 1 and "test rows of 1-ab are training rows of 2-7." in plan.notes[0]


def test_ways_are_found_in_the_registries():
    assert {"naive", "replay", "joint", "cumulative", "ewc", "si", "rwalk", "agem"} <= set(ways())
    assert "l2_sp" not in ways() and "adamw" not in ways()
    assert find("penalties", "ewc")().reads_rows  # type: ignore[attr-defined]

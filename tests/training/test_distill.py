"""Distillation runs: from an adapter, from the base with a text that the student does not see, from another model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import luthier as lt
from luthier import models
from luthier.training import Run, Training, metrics, train
from support.tiny import TEMPLATE, save_model, sums, write_rows

SETTINGS = Training(epochs=8, batch=4, lr=2e-2, eval_fraction=0.2, save_every=6)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("distill")
    rows = [row | {"hint": "Say it backwards, twice."} for row in sums(20)]
    return Run(
        save_model(folder / "llama", "llama", TEMPLATE),
        write_rows(folder / "rows.jsonl", rows),
        lt.LoRA(rank=4),
        out=str(folder / "hint"),
        objective=lt.Distill(),
        training=SETTINGS,
    )


@pytest.fixture(scope="module")
def plain(run) -> str:
    return write_rows(run.folder.parent / "plain.jsonl", sums(20))


def fell(result) -> bool:
    held = [line["eval_loss"] for line in metrics.read(result.folder) if "eval_loss" in line]
    return result.losses[-1][1] < 0.5 * result.losses[0][1] and held[-1] < held[0]


def test_a_hint_is_learned_into_the_weights(run):
    result = train(run, progress=False)
    lines = [line for line in metrics.read(result.folder) if "loss" in line]
    assert fell(result) and 0 <= lines[-1]["agreement"] <= 1
    again = train(replace(run, out=f"{run.out}-again"), progress=False)
    assert again.losses == result.losses


def test_an_adapter_teaches_another_form(run, plain):
    """The teacher's own tensors stay, none of them is saved, and it is off the model afterwards."""
    taught = replace(run, data=plain, objective=lt.SFT(), out=f"{run.out}-teacher")
    teacher = train(taught, progress=False)
    before = load_file(teacher.adapter / "adapter.safetensors")
    chosen = lt.Distill(teacher=str(teacher.folder), divergence="reverse")
    student = train(replace(taught, form=lt.IA3(), objective=chosen, out=f"{run.out}-student"), progress=False)
    assert student.losses[-1][1] < student.losses[0][1]
    assert {row["form"] for row in lt.describe(student.model)} == {"ia3"}
    after = load_file(teacher.adapter / "adapter.safetensors")
    assert all(torch.equal(before[key], after[key]) for key in before)
    same = train(replace(taught, objective=chosen, out=f"{run.out}-same"), progress=False)
    assert fell(same)


def test_another_model_teaches(run, plain):
    larger = save_model(run.folder.parent / "larger", "llama", TEMPLATE, num_hidden_layers=4)
    chosen = replace(run, data=plain, objective=lt.Distill(teacher=larger, divergence="jsd"), out=f"{run.out}-larger")
    result = train(chosen, progress=False)
    assert result.losses[-1][1] < result.losses[0][1]
    assert sum(p.numel() for p in models.load(run.model).model.parameters()) == result.total


def test_teachers_that_cannot_be_are_refused(run, plain):
    with pytest.raises(lt.LuthierError, match="nothing to learn"):
        train(replace(run, data=plain, out=f"{run.out}-none"), progress=False)
    with pytest.raises(lt.LuthierError, match="nowhere"):
        train(
            replace(run, data=plain, objective=lt.Distill(teacher="./nowhere"), out=f"{run.out}-none"), progress=False
        )
    with pytest.raises(lt.LuthierError, match="would ignore"):
        lt.Distill(beta=0.3)
    with pytest.raises(lt.LuthierError, match="without them"):
        lt.Distill(divergence="jsd", beta=1.0)


def test_a_teacher_of_another_vocabulary_is_refused(run, plain, tmp_path):
    from support.tiny import tokenizer

    other = save_model(tmp_path / "other", "llama", TEMPLATE)
    changed = tokenizer(TEMPLATE)
    changed.add_tokens(["<more>"])
    changed.save_pretrained(other)
    with pytest.raises(lt.LuthierError, match="another vocabulary"):
        train(replace(run, data=plain, objective=lt.Distill(teacher=other), out=f"{run.out}-none"), progress=False)

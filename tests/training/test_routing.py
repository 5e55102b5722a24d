"""Training with a router: the balance loss is in the loss, and the load of experts is written over time."""

from __future__ import annotations

import csv
from dataclasses import replace

import pytest
import torch

import luthier as lt
from luthier import data, models
from luthier.core.adapters.attach import attach
from luthier.core.adapters.control import watched
from luthier.core.contracts.router import RoutedBatch
from luthier.methods.objectives.two_passes import TwoPasses
from luthier.training import Run, Training, train
from luthier.training.checkpoint import checkpoints
from luthier.training.prepare import prepare
from luthier.training.routing import Load, grid_of, read
from luthier.training.task_columns import task_indices
from support import drawing
from support.tiny import save_model, sums, write_rows

SETTINGS = Training(steps=4, batch=4, save_every=2, keep=9, lr=1e-2, eval_fraction=0.2, warmup=0)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("routed")
    rows = [row | {"task": "ab"[i % 2]} for i, row in enumerate(sums(20))]
    source, form = write_rows(folder / "rows.jsonl", rows), lt.MixLoRA(experts=3, rank=2, beta=0.5)
    return Run(save_model(folder / "llama", "llama"), source, form, out=str(folder / "mix"), training=SETTINGS)


@pytest.fixture(scope="module")
def done(run):
    with drawing.drawn():
        return train(run, progress=False)


def table(folder) -> list[list[str]]:
    with open(folder / "routing.csv", encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_the_run_tells_the_load_of_each_expert_and_layer_over_time(done):
    rows = read(done.folder)
    assert table(done.folder)[0] == ["step", "layer", "site", "expert", "load", "balance"]
    assert {row.step for row in rows} == {1, 2, 3, 4} and {row.layer for row in rows} == {0, 1, 2}
    assert len(rows) == 4 * 3 * 3 and {row.expert for row in rows} == {0, 1, 2}
    for step in (1, 4):
        for layer in range(3):
            assert sum(r.load for r in rows if (r.step, r.layer) == (step, layer)) == pytest.approx(1, abs=1e-4)
    assert (done.folder / "routing.png").stat().st_size > 5000
    grid, labels, steps = grid_of([*rows, Load(9, None, "x", 0, 0.5, 0.0)])
    assert steps == [1, 2, 3, 4, 9] and labels[:2] == [(-1, 0), (0, 0)] and grid[0][-1] == 0.5


def test_the_balance_is_in_the_loss(run, done):
    """The first loss is that of the objective and the form's balance of the first batch."""
    bare = train(replace(run, form=replace(run.form, beta=0.0), out=f"{run.out}-bare"), progress=False)
    balance = next(row.balance for row in read(done.folder) if row.step == 1)
    assert balance > 0.5 * 1.9
    assert done.losses[0][1] == pytest.approx(bare.losses[0][1] + balance, rel=1e-4)
    assert done.losses[-1][1] != bare.losses[-1][1] and done.eval_loss is not None
    whole = train(
        replace(run, out=f"{run.out}-halves", training=replace(SETTINGS, batch=2, accumulate=2)), progress=False
    )
    assert whole.losses[0][1] == pytest.approx(done.losses[0][1], rel=0.05)  # f and p are those of each half


def test_it_resumes_with_the_same_table(run, done):
    lines, losses = table(done.folder), done.losses
    for path in checkpoints(done.folder / "checkpoints"):
        if int(path.name[5:]) > 2:
            (path / "manifest.json").unlink()
    again = train(run, resume=True, progress=False)
    assert again.losses == losses and table(again.folder) == lines


def test_types_come_from_the_column_task_and_padding_is_left_out(run):
    form = lt.LoRAMoE(experts=4, rank=2, beta=0.5, delta=0.3, types=("a", "b"))
    prepared = prepare(replace(run, form=form, out=f"{run.out}-typed"))
    batch = data.collator_for(prepared.task, prepared.processor)(list(prepared.train[:4]))
    batch.pop("rows")
    model = attach(models.load(run.model).model, form)
    with watched(model) as routes:
        model(**batch)
    about = RoutedBatch(batch["attention_mask"].bool(), batch["tasks"])
    told = form.balance([route.logits for route in routes], about)
    untold = form.balance([route.logits for route in routes], replace(about, tasks=None))
    assert told is not None and untold is not None and not torch.isclose(told, untold)
    assert {route.layer for route in routes} == {0, 1, 2} and {route.adapter for route in routes} == {"default"}
    with pytest.raises(lt.LuthierError, match=r"no row of .* is of the type 'c'"):
        prepare(replace(run, form=replace(form, types=("a", "c")), out=f"{run.out}-c"))
    with pytest.raises(lt.LuthierError, match="no task 'b'"):
        task_indices(replace(form, types=("a", "c")), prepared.examples)
    chosen = replace(run, form=form, where="gate_proj, up_proj", out=f"{run.out}-typed")
    result = train(chosen, progress=False)
    assert {row.site.rpartition(".")[2] for row in read(result.folder)} == {"gate_proj", "up_proj"}


def test_more_experts_than_the_tokens_of_all_rows_could_be_sent_to_are_told_before_training(run, tmp_path):
    few = write_rows(tmp_path / "few.jsonl", sums(2))
    settings = replace(SETTINGS, eval_fraction=0.0)
    spec = replace(run, data=few, form=lt.MixLoRA(experts=500, rank=1), out=str(tmp_path / "out"), training=settings)
    with pytest.raises(lt.LuthierError, match=r"mixlora has 500 experts, and sends each of the \d+ tokens .* to 2"):
        prepare(spec)
    prepare(replace(spec, form=lt.LoRAMoE(experts=500, rank=1)))  # every token meets them all


def test_an_examination_reads_it_from_the_adapter(run, done):
    loaded = models.load(run.model)
    found = lt.examine(done.folder, "routing", base=loaded.model, processor=loaded.processor, data=run.data)
    numbers = found.report.places["model.layers.1.mlp"]
    assert sum(numbers[f"expert {i}"] for i in range(3)) == pytest.approx(1)
    assert 1 <= numbers["worth"] <= 3 and found.report.null_summary["worth"] == pytest.approx(3)
    plain = train(replace(run, form=lt.LoRA(rank=2), out=f"{run.out}-lora"), progress=False)
    assert not (plain.folder / "routing.csv").exists()
    with pytest.raises(lt.LuthierError, match="has a router"):
        lt.examine(plain.folder, "routing", base=loaded.model, processor=loaded.processor, data=run.data)


def test_two_passes_train_the_experts_of_mosa(run):
    chosen = replace(run, form=lt.MoSA(dim=8, experts=2), objective=TwoPasses(), out=f"{run.out}-mosa")
    result = train(replace(chosen, training=replace(SETTINGS, gradient_checkpointing=True)), progress=False)
    plain = train(chosen, progress=False, overwrite=True)
    assert [loss for _, loss in result.losses] == pytest.approx([loss for _, loss in plain.losses], rel=1e-4)

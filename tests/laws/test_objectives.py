"""The laws of objectives, over the registry: a new file is tested the day it is dropped in."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from luthier import data, models
from luthier.core.adapters.attach import attach
from luthier.core.adapters.call import Call
from luthier.core.adapters.control import disabled
from luthier.core.contracts.component import find, names
from luthier.core.contracts.form import Form
from luthier.core.contracts.objective import At, Objective
from luthier.core.errors import LuthierError
from luthier.methods.forms.lora import LoRA
from luthier.methods.forms.loreft import LoReFT
from luthier.methods.forms.meteora import MeteoRA
from luthier.methods.objectives.sft import SFT
from luthier.training import Run, Training, train
from luthier.training.checkpoint import checkpoints
from luthier.training.prepare import prepare
from support.tiny import pairs, save_model, sums, write_rows

OBJECTIVES = names("objectives")
GIVEN = [
    name
    for name in OBJECTIVES
    if find("objectives", name, Objective).reads == ("answers",)
    and not find("objectives", name, Objective).teaches
    and not find("objectives", name, Objective)().samples
]
"""Those that learn the answers of rows, as fine-tuning does."""
SETTINGS = Training(steps=6, batch=4, accumulate=2, save_every=2, keep=20, lr=1e-2, eval_fraction=0.2, warmup=0)


SMALL = {"group": 3, "max_tokens": 4, "reward": [f"{Path(__file__).parents[1] / 'support' / 'rewards.py'}:digits"]}
"""Settings of objectives that sample answers: few and short ones, with a reward that tells them apart."""


def objective(name: str, **settings) -> Objective:
    cls = find("objectives", name, Objective)
    small = {key: value for key, value in SMALL.items() if cls().samples and key in cls.settings()}
    return cls.from_dict({**small, **settings})


def form_for(chosen: Objective, dropout: float = 0.0) -> Form:
    """A form that the objective trains: factors, or else experts that are named for the tasks of the rows."""
    form = LoRA(rank=4, dropout=dropout)
    try:
        chosen.check_form(form)
    except LuthierError:
        form = MeteoRA(experts=("a", "b"), rank=4, dropout=dropout)
        chosen.check_form(form)
    return form


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """Rows with every column that an objective reads; LoRA with dropout, so that each random draw counts."""
    folder = tmp_path_factory.mktemp("objectives")
    rows = [row | {"task": "ab"[i % 2], "rationale": f"{i} is odd", "hint": "add"} for i, row in enumerate(sums(40))]
    data = write_rows(folder / "rows.jsonl", rows)
    write_rows(folder / "pairs.jsonl", pairs(40))
    write_rows(
        folder / "classes.jsonl", [{"text": row["prompt"], "label": row["completion"][0] > "3"} for row in sums(40)]
    )
    texts = [{"anchor": row["prompt"], "positive": f"is {row['completion']}"} for row in sums(40)]
    write_rows(folder / "near.jsonl", texts)
    return Run(
        save_model(folder / "llama", "llama"), data, form_for(SFT(), 0.2), out=str(folder / "sft"), training=SETTINGS
    )


def run_of(run: Run, name: str, chosen: Objective) -> Run:
    """The run with an objective, on rows that it reads."""
    folder = run.folder.parent
    held = {"texts": "near.jsonl"}.get(chosen.reads[0], "pairs.jsonl")
    data = run.data if {"answers", "prompts"} & set(chosen.reads) else str(folder / held)
    if not chosen.serves("causal-lm") and "answers" in chosen.reads:
        data = str(folder / "classes.jsonl")
    form = form_for(chosen, run.form.to_dict()["dropout"])
    return replace(run, form=form, objective=chosen, out=str(folder / name), data=data)


def trained(run: Run, name: str, chosen: Objective):
    return train(run_of(run, name, chosen), progress=False, overwrite=True)


def bits(result) -> dict[str, torch.Tensor]:
    return load_file(result.adapter / "adapter.safetensors")


@pytest.fixture(scope="module")
def plain(run):
    """Fine-tuning of the form that an objective is tried on."""
    done = {}

    def plain_of(chosen: Objective):
        same = run_of(run, "plain", chosen)
        key = same.form, same.data
        if key not in done:
            each = replace(same, objective=SFT(), out=str(run.folder.parent / f"plain-{len(done)}"))
            done[key] = train(each, progress=False, overwrite=True)
        return done[key]

    return plain_of


@pytest.fixture(scope="module")
def on(run):
    """A run with an objective at its defaults."""
    return functools.cache(lambda name: trained(run, f"{name}-on", objective(name)))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_it_states_its_equation_and_source(name):
    cls = find("objectives", name)
    assert len(cls.equation()) > 5 and cls.paper and find("objectives", cls.name()) is cls
    json.dumps(cls().to_dict())


@pytest.mark.parametrize("name", GIVEN)
def test_switched_off_it_is_fine_tuning_to_the_bit(run, plain, name):
    off = trained(run, f"{name}-off", objective(name, **objective(name).neutral))
    sft = plain(objective(name))
    assert off.losses == sft.losses and off.eval_loss == sft.eval_loss
    ours, theirs = bits(off), bits(sft)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_it_trains(on, plain, name):
    """The loss is finite, every adapter moves, and what it does differs from plain fine-tuning."""
    result = on(name)
    assert all(loss == loss and abs(loss) < 1e9 for _, loss in result.losses)
    moved = {key: tensor for key, tensor in bits(result).items() if key.endswith("B")}
    assert all(tensor.abs().sum() > 0 for tensor in moved.values())
    if name in GIVEN and objective(name).neutral:  # without such settings it is fine-tuning on rows like these
        assert result.losses != plain(objective(name)).losses


@pytest.mark.parametrize("name", OBJECTIVES)
def test_it_resumes_exactly(run, on, name):
    whole = on(name)
    expected, losses = bits(whole), whole.losses
    for path in checkpoints(whole.folder / "checkpoints"):
        if int(path.name[5:]) > 2:
            (path / "manifest.json").unlink()
    again = train(run_of(run, whole.folder.name, objective(name)), resume=True, progress=False)
    assert again.losses == losses and again.eval_loss == whole.eval_loss
    assert all(torch.equal(tensor, expected[key]) for key, tensor in bits(again).items())


def placed() -> list[str]:
    """Those that train a form with positions on a language model."""
    found = []
    for name in OBJECTIVES:
        try:
            objective(name).check_form(LoReFT())
        except LuthierError:
            continue
        able = objective(name).task is None and objective(name).serves("causal-lm")
        found += [name] if able and not objective(name).samples else []
    return found


@pytest.mark.parametrize("name", placed())
def test_positions_end_with_the_prompt(run, name, monkeypatch):
    """A form with positions edits no token of an answer, whatever the objective makes of the rows."""
    chosen, edits, locate = objective(name), [], Call.locate
    prepared = prepare(replace(run_of(run, f"{name}-placed", chosen), form=LoReFT(rank=2, positions="f2+l2")))
    model = attach(models.load(run.model).model, LoReFT(rank=2, positions="f2+l2"))
    batch = data.collator_for(prepared.task, prepared.processor)(prepared.train[:4])
    batch.pop("rows")
    monkeypatch.setattr(Call, "locate", lambda self, where: edits.append(locate(self, where)) or edits[-1])

    def teacher(given):
        with disabled(model):
            return model(**given).logits.detach()

    inputs = chosen.inputs(batch, At(0, 10, True, teacher))
    chosen.loss(model, inputs)
    starts = inputs["labels"].ne(-100).long().argmax(1)
    assert edits
    for index, keep in edits:
        edited = torch.where(keep, index, -1)
        start = starts if len(edited) == len(starts) else torch.stack([starts[0::2], starts[1::2]]).min(0).values
        assert bool((edited >= 0).any()) and bool((edited < start[:, None]).all())


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if find("objectives", name, Objective).whole])
def test_a_step_in_many_batches_is_the_step_in_one(run, name):
    """Whatever it averages over, it does so over the step. Random draws are left out by a settled start."""
    quiet = {"ramp": 1.0, "noise": 0.0}
    known = find("objectives", name).settings()
    chosen = objective(name, **{key: value for key, value in quiet.items() if key in known})
    form, found = form_for(chosen), []
    for batch, accumulate in ((8, 1), (2, 4)):
        settings = replace(SETTINGS, batch=batch, accumulate=accumulate, steps=1)
        each = replace(run, form=form, training=settings)
        found.append(trained(each, f"{name}-{batch}", chosen).losses[0][1])
    assert found[1] == pytest.approx(found[0], rel=1e-5)

"""A head that the checkpoint lacks is trained whole, saved whole and comes back exactly, whatever adapts the rest."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import set_seed

import luthier as lt
from luthier import models
from luthier.core.adapters.attach import state_of
from luthier.core.adapters.optimiser import optimiser
from luthier.core.adapters.training_plan import active_groups, training_plan
from luthier.core.contracts.component import find, names
from luthier.core.contracts.form import Form
from luthier.core.contracts.router import Routed
from luthier.core.contracts.update import Update
from luthier.core.sites.fresh import mark_fresh
from luthier.evaluating.untrained import refuse_untrained
from luthier.methods.targeted_form import TargetedForm
from luthier.methods.updates.adamw import AdamW
from luthier.methods.updates.hft import HFT
from luthier.methods.updates.lisa import LISA
from luthier.methods.updates.lt_sft import LTSFT
from luthier.training import Result, Run, Training, train
from support.architectures import ARCHITECTURES
from support.thinned import thinned
from support.tiny import sums, write_rows

SHORT = Training(steps=6, batch=4, lr=1e-2, eval_fraction=0, warmup=0, max_length=16, save_every=6)
LABELS = ["even", "odd"]
FORMS = [
    form
    for name in names("forms")
    if (not issubclass(form := find("forms", name, Form), Routed) or not form.by_task)
    and form.edit_kind != "inside"  # BERT's feed-forward part is no module, which a form could run
    and "input" not in form.sees  # beside these a head is no map by itself
]
UPDATES = [name for name in names("updates") if not find("updates", name, Update).rehearses]
READING = [form for name in names("forms") if "input" in (form := find("forms", name, Form)).sees]


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> str:
    labelled = [{"text": row["prompt"], "label": LABELS[i % 2]} for i, row in enumerate(sums(12))]
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", labelled)


def update_of(name: str) -> Update:
    """The update, so quick that a few steps meet every change that it makes."""
    cls = find("updates", name, Update)
    quick = {"interval": 2, "search": 0.4, "lora_rank": 1, "filter_rank": 2, "density": 0.05}
    return cls.from_dict({key: value for key, value in quick.items() if key in cls.settings()})


def fitting(update: Update) -> tuple[Form, str]:
    """A form that the update trains, and where: whole weights, or else factors, or else routed ones."""
    for form, where in (
        (lt.Full(), "params(*)"),
        (lt.LoRA(rank=2), "all-linear"),
        (lt.MeteoRA(rank=2), "all-linear"),
        (lt.Sparse(k=8), "all-linear"),
        (lt.DSEE(rank=2, prunable=True), "all-linear"),
    ):
        try:
            update.check_form(form, lt.select(bare(), where))
        except lt.LuthierError:
            continue
        return form, where
    raise AssertionError(f"{update.name()} trains none of them")


def bare():
    return ARCHITECTURES["bert"].build()


def heads(model) -> dict[str, torch.Tensor]:
    """The head as the model computes with it."""
    head = model.classifier
    width = model.config.hidden_size
    with torch.no_grad():
        shift = head(torch.zeros(1, width))
        return {"weight": (head(torch.eye(width)) - shift).mT, "bias": shift[0]}


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])).logits


def held(base: str, rows: str, folder: Path, form: Form, where: str | None, update: Update | None = None) -> Result:
    """Trains, and holds the law."""
    run = Run(base, rows, form, where, str(folder), training=SHORT, update=update or AdamW())
    result = train(run, progress=False)
    set_seed(SHORT.seed)
    start = heads(models.load(base, task="classification", labels=LABELS).model)
    after = heads(result.model)
    assert all(not torch.allclose(after[key], start[key], atol=1e-4) for key in start), "the head did not move"
    torch.manual_seed(99)
    fresh = models.load(base, task="classification", labels=LABELS)
    assert not torch.allclose(heads(fresh.model)["weight"], start["weight"], atol=1e-3)
    lt.load(fresh.model, result.adapter)
    refuse_untrained(fresh)
    assert torch.equal(logits(fresh.model), logits(result.model))
    return result


@pytest.mark.parametrize("name, apart", thinned(UPDATES, [False, True], 2))
def test_under_every_update(name, apart, bert, rows, tmp_path):
    update = update_of(name)
    form, where = fitting(update)
    if apart:
        where = "params(*.layer.*)" if form.name() == "full" else f"{where} & layers(0, 1)"
    held(bert, rows, tmp_path / "run", form, where, update)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name())
def test_beside_every_form(form, bert, rows, tmp_path):
    held(bert, rows, tmp_path / "run", form(), None)


@pytest.mark.parametrize("form", READING, ids=lambda form: form.name())
def test_beside_what_reads_the_input_of_the_model(form, bert, rows, tmp_path):
    result = train(Run(bert, rows, form(), out=str(tmp_path / "run"), training=SHORT), progress=False)
    set_seed(SHORT.seed)
    start = heads(models.load(bert, task="classification", labels=LABELS).model)
    held = {key.rpartition("classifier.")[2]: t for key, t in lt.trainable(result.model).items()}
    assert all(not torch.allclose(held[f"{key}.theta"], start[key], atol=1e-4) for key in start)
    torch.manual_seed(99)
    fresh = models.load(bert, task="classification", labels=LABELS)
    lt.load(fresh.model, result.adapter)
    refuse_untrained(fresh)
    assert torch.equal(logits(fresh.model), logits(result.model))
    with pytest.raises(lt.LuthierError, match="reads the model's input"):
        result.model.classifier(torch.zeros(1, fresh.model.config.hidden_size))


OVER = [form for form in FORMS if {"affine", "param"} & set(form.kinds)]


@pytest.mark.parametrize("form", OVER, ids=lambda form: form.name())
def test_under_every_form_that_is_put_on_it(form, bert, rows, tmp_path):
    """What the form is asked to do to the head gives way: the head is trained whole."""
    where = "params(*)" if form.elementwise and "param" in form.kinds else f"{form.where} | classifier"
    result = held(bert, rows, tmp_path / "run", form(), where)
    parts = state_of(result.model).components
    assert [site.path for part in parts for site in part.sites if site.module == "classifier"] == [
        "classifier.weight",
        "classifier.bias",
    ]


def test_a_form_on_a_new_head_alone_is_refused(bert, rows, tmp_path):
    with pytest.raises(lt.LuthierError, match="it is new, and trained whole without lora"):
        train(Run(bert, rows, lt.LoRA(), "classifier", str(tmp_path / "run"), training=SHORT), progress=False)


def adapted(form: Form, where: str):
    """A model with a head of its own, noted as new, and the form on all that `where` says."""
    model = ARCHITECTURES["bert"].build()
    mark_fresh(model, ["classifier"])
    return lt.attach(model, form, where)


@pytest.mark.parametrize("update", [LTSFT(density=0.05, search=0.4), LISA(gamma=1), HFT(outside=False)], ids=str)
def test_in_a_loop_of_one_s_own(update):
    model = adapted(lt.Full(), "params(*)")
    plan = training_plan(model, 6)
    assert {place.site.path for place in plan.new_groups} == {"classifier.weight", "classifier.bias"}
    assert not {place.name for place in plan.new_groups} & {place.name for place in plan.groups}
    optimizer = optimiser(model, update, lr=1e-2, steps=6)
    weight = lt.trainable(model)["default.classifier.weight.theta"]
    seen = [weight.detach().clone()]
    for step in range(6):
        assert set(plan.new_groups) <= set(active_groups(update, plan, step))
        model(torch.tensor([[5, 6, 7, 8]]), labels=torch.tensor([step % 2])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(weight.detach().clone())
    assert all(((after - before) != 0).all() for before, after in pairwise(seen))
    assert not any(after.equal(seen[0]) for after in seen[1:])  # never set back


@pytest.mark.parametrize("name", ["lift", "lt_sft"])
def test_further_forms_of_a_sparse_adapter_train_whole(name, bert, rows, tmp_path):
    update = update_of(name)
    also = (TargetedForm(lt.LoReFT(rank=2), "stream"),)
    run = Run(
        bert, rows, lt.Full(), "params(*.layer.*)", str(tmp_path / "run"), training=SHORT, update=update, also=also
    )
    result = train(run, progress=False)
    assert [part.form.name() for part in state_of(result.model).components] == ["sparse", "loreft", "full"]
    torch.manual_seed(99)
    fresh = models.load(bert, task="classification", labels=LABELS).model
    lt.load(fresh, result.adapter)
    assert torch.equal(logits(fresh), logits(result.model))
    lobe = lt.trainable(result.model)
    assert any((t != 0).all() for key, t in lobe.items() if key.endswith(".b"))

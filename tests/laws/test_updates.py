"""The laws of updates, over the registry: a new file is tested the day it is dropped in."""

from __future__ import annotations

import io

import pytest
import torch

import luthier as lt
from luthier.core.adapters.control import tensors
from luthier.core.adapters.optimiser import optimiser
from luthier.core.adapters.training_plan import training_plan
from luthier.core.contracts.component import find, names
from luthier.core.contracts.form import Form
from luthier.core.contracts.update import Update
from support.calibrated import batches, build

UPDATES = names("updates")
STEPS = 7
WHERE = {"full": "params(*.layers.*.weight)"} | dict.fromkeys(("lora", "mhr", "sparse", "dsee"), "q_proj, down_proj")


def update_of(name: str, **settings) -> Update:
    """The update, so quick that a few steps meet every change that it makes."""
    cls = find("updates", name)
    quick = {"interval": 2, "search": 0.4, "threshold": 0.05, "narrowest": 8} if not settings else {}
    made = cls.from_dict({key: value for key, value in quick.items() if key in cls.settings()} | settings)
    assert isinstance(made, Update)
    return made


def attached(form: Form, where: str):
    torch.manual_seed(3)
    return lt.attach(build(dtype=torch.float64), form, where)


def form_for(update: Update) -> tuple[Form, str]:
    """A form that the update trains, and where: whole weights, or else factors, or else routed ones."""
    for form in (
        lt.Full(),
        lt.LoRA(rank=3),
        lt.MHR(rank=3, skills=2),
        lt.Sparse(density=0.1),
        lt.DSEE(rank=2, prunable=True),
    ):
        where = WHERE[form.name()]
        try:
            update.check_form(form, lt.select(build(), where))
        except lt.LuthierError:
            continue
        return form, where
    raise AssertionError(f"{update.name()} trains none of {', '.join(WHERE)}")


def steps(model, optimizer, first: int, last: int) -> list[float]:
    """Trains on the same batch in the same step, whatever came before."""
    losses = []
    for step in range(first, last):
        loss = model(**batches(1, seed=step)[0]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def copies(model) -> dict[str, torch.Tensor]:
    return {key: t.detach().clone() for key, t in tensors(model).items()}


def same(left, right) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.fixture(params=UPDATES)
def case(request):
    """(update, model with a form that it trains)."""
    update = update_of(request.param)
    return update, attached(*form_for(update))


@pytest.mark.parametrize("name", UPDATES)
def test_it_states_its_equation_and_source(name):
    update = find("updates", name)
    assert len(update.equation()) > 5 and update.paper and update.name() == name
    assert Update.from_dict.__func__(update, update().to_dict()) == update()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", [name for name in UPDATES if find("updates", name).neutral is not None])  # type: ignore[attr-defined]
def test_its_neutral_setting_is_plain_adamw(name):
    update = update_of(name, **dict(find("updates", name).neutral))  # type: ignore[attr-defined]
    form, where = form_for(update)
    where = "params(*.layers.*proj.weight)" if form.name() == "full" else where
    decay = 0.1 if update.decays else 0.0
    model, plain = attached(form, where), attached(form, where)
    steps(model, optimiser(model, update, lr=1e-2, steps=STEPS, weight_decay=decay), 0, STEPS)
    steps(plain, torch.optim.AdamW(lt.trainable(plain).values(), lr=1e-2, weight_decay=decay), 0, STEPS)
    assert same(copies(model), copies(plain))


def test_it_lowers_the_loss_and_leaves_the_base_alone(case):
    update, model = case
    base = {key: t.clone() for key, t in model.state_dict().items() if ".adapters." not in key}
    rows = batches(1)[0]
    optimizer = optimiser(model, update, lr=1e-2, steps=STEPS)
    losses = []
    for _ in range(STEPS):
        loss = model(**rows).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[1] < losses[0] and all(torch.isfinite(t).all() for t in tensors(model).values())
    assert same({key: t for key, t in model.state_dict().items() if ".adapters." not in key}, base)


def test_what_is_not_active_keeps_its_bits_and_gets_no_gradient(case):
    update, model = case
    optimizer = optimiser(model, update, lr=1e-2, steps=STEPS, weight_decay=0.1 if update.decays else 0.0)
    plan = training_plan(model, STEPS)
    for step in range(STEPS):
        active = {place.name for place in update.active(plan, step)}
        resting = {p.key(k) for p in plan.groups if p.name not in active for k in p.params}
        before = copies(model)
        model(**batches(1, seed=step)[0]).loss.backward()
        assert all(tensors(model)[key].grad is None for key in resting)
        optimizer.step()
        optimizer.zero_grad()
        set_anew = set(update.values(plan, step + 1))
        assert all(torch.equal(tensors(model)[key], before[key]) for key in resting - set_anew)


@pytest.mark.parametrize("kept", [0, 2, 3, 5])
def test_a_resumed_run_equals_one_left_alone(case, kept):
    update, model = case
    start = copies(model)
    optimizer = optimiser(model, update, lr=1e-2, steps=STEPS)
    steps(model, optimizer, 0, kept)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    middle = copies(model)
    losses = steps(model, optimizer, kept, STEPS)
    expected = copies(model)
    for parameter in tensors(model).values():
        parameter.requires_grad_(parameter.is_floating_point())
    with torch.no_grad():
        for key, tensor in tensors(model).items():
            tensor.copy_(middle[key])
    again = optimiser(model, update, lr=1e-2, steps=STEPS, resumes=True)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert steps(model, again, kept, STEPS) == losses
    assert same(copies(model), expected) and not same(expected, start)


def test_what_it_does_follows_from_the_seed(case):
    update, model = case
    plan = training_plan(model, 40, seed=1)
    drawn = [[p.name for p in update.active(plan, step)] for step in range(40)]
    assert drawn == [[p.name for p in update.active(plan, step)] for step in range(40)]
    if len({tuple(names) for names in drawn}) > 1:
        assert update.changes
        other = training_plan(model, 40, seed=2)
        assert drawn != [[p.name for p in update.active(other, step)] for step in range(40)]

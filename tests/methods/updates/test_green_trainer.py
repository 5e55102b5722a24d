"""GreenTrainer: the operations that it counts, the choice that it makes of them, and a probe that leaves no trace."""

from __future__ import annotations

import io
import itertools
import random

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import luthier as lt
from luthier.core.adapters.control import tensors
from luthier.core.adapters.flops import backward_costs, probing_loss
from luthier.core.adapters.optimiser import optimiser
from luthier.core.adapters.training_plan import training_plan
from luthier.core.contracts.kernel import reference_implementation
from luthier.methods.updates.green_trainer import GreenTrainer, choose, selected
from luthier.training import Run, Training, train
from support.architectures import ARCHITECTURES
from support.calibrated import batches
from support.common import copies, full, llama, run
from support.tiny import save_model, sums, write_rows


def counted(model, groups) -> int:
    """torch's own count of a step that trains these groups."""
    for p in tensors(model).values():
        p.requires_grad_(False)
    for group in groups:
        for p in group.params.values():
            p.requires_grad_(p.is_floating_point())
    with reference_implementation(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        probing_loss(model).backward()
    model.zero_grad(set_to_none=True)
    return counter.get_total_flops()


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_the_model_of_costs_is_torch_s_count_and_the_choice_keeps_its_budget(name):
    model = lt.attach(ARCHITECTURES[name].build(), lt.Full(), "params(*)", check=False)
    plan = training_plan(model, 8)
    costs = backward_costs(lambda: probing_loss(model), plan.groups)
    draw = random.Random(name)
    assert counted(model, plan.groups) == pytest.approx(costs.total, rel=0.02)
    some = draw.sample([group for group in plan.groups if group.name in costs.names], 5)
    assert counted(model, some) == pytest.approx(costs.of([group.name for group in some]), rel=0.02)
    importance = {group.name: draw.uniform(-1, 3) for group in plan.groups}
    for share in (0.2, 0.6):
        rho = (costs.least + share * (costs.total - costs.least)) / costs.total
        chosen = selected(costs, importance, rho)
        spent = counted(model, [group for group in plan.groups if group.name in chosen])
        assert chosen and spent <= rho * costs.total * 1.0001 and costs.of(chosen) <= rho * costs.total


def test_costs_of_the_places_of_a_form_are_torch_s_count():
    model = lt.attach(llama(), lt.DoRA(rank=4), "all-linear")
    plan = training_plan(model, 8)
    costs = backward_costs(lambda: probing_loss(model), plan.groups)
    for part in (plan.groups, plan.groups[5:6], plan.groups[-2:]):
        expected = counted(model, part)
        assert expected == pytest.approx(costs.of([group.name for group in part]), rel=0.02)
    assert costs.of([plan.groups[-1].name]) < 0.7 * costs.of([plan.groups[0].name])


def brute(values, own, left) -> float:
    """The value of the best set, by trying all."""
    found = [
        sum(values[i] for i in members)
        for size in range(1, len(values) + 1)
        for members in itertools.combinations(range(len(values)), size)
        if sum(own[i] for i in members) <= left[members[-1]]
    ]
    return max(found, default=0.0)


def test_the_choice_is_that_of_trying_all_sets():
    draw = random.Random(1)
    for _ in range(300):
        n = draw.randint(1, 7)
        values = tuple(draw.choice([draw.uniform(-1, 2), 0.5, 0.0]) for _ in range(n))
        own = tuple(draw.choice([1, 3, draw.randint(0, 20)]) for _ in range(n))
        start, falls = draw.randint(0, 40), [draw.randint(0, 9) for _ in range(n)]
        left = tuple(start - sum(falls[: i + 1]) for i in range(n))
        chosen = choose(values, own, left)
        assert not chosen or sum(own[i] for i in chosen) <= left[chosen[-1]]
        assert sum(values[i] for i in chosen) == pytest.approx(brute(values, own, left), abs=1e-12)


def test_a_probe_measures_the_step_s_effect_and_leaves_no_trace():
    model, twin = full(2), full(2)
    update = GreenTrainer(rho=0.6, every=4)
    optimizer = optimiser(model, update, lr=1e-2, steps=12)
    run(model, optimizer, 4)  # a probe, and two steps of what it chose
    before = copies(model)
    held = {id(p): {k: t.clone() for k, t in state.items()} for p, state in optimizer.state.items()}
    shown = dict(tensors(twin))
    with torch.no_grad():
        for key, t in shown.items():
            t.copy_(before[key])
    other = torch.optim.AdamW(shown.values(), lr=1e-2, weight_decay=0)
    for key, p in tensors(model).items():
        if id(p) in held:
            other.state[shown[key]] = {k: t.clone() for k, t in held[id(p)].items()}
    run(twin, other, 1, first=4)
    moved = {key: t - before[key] for key, t in copies(twin).items()}
    twin(**batches(1, seed=5)[0]).loss.backward()
    expected = {key: -float((t.grad * moved[key]).sum()) for key, t in shown.items()}  # type: ignore[operator]
    run(model, optimizer, 1, first=4)
    assert all(t.equal(before[key] + moved[key]) for key, t in copies(model).items())
    model(**batches(1, seed=5)[0]).loss.backward()
    chosen = [id(p) for p in tensors(model).values() if id(p) in held]
    optimizer.step()
    assert same(copies(model), before)
    kept = {id(p): state for p, state in optimizer.state.items()}
    assert kept and all(t.equal(held[key][k]) for key, state in kept.items() for k, t in state.items())
    assert set(kept) <= set(chosen)
    states = optimizer.state_dict()["update"]["states"]
    found = {f"{name}.theta": float(state["importance"]) for name, state in states.items()}
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12) and len(set(found.values())) > 10


def same(left, right) -> bool:
    return left.keys() == right.keys() and all(left[key].equal(right[key]) for key in left)


@pytest.mark.parametrize("form", [lt.Full(), lt.LoRA(rank=2)])
@pytest.mark.parametrize("kept", [1, 2, 5, 6])
def test_it_goes_on_from_within_a_probe_and_behind_one(form, kept):
    model = lt.attach(llama(2), form, "params(*)" if form == lt.Full() else "all-linear")
    update, start = GreenTrainer(rho=0.7, every=5), copies(model)
    optimizer = optimiser(model, update, lr=1e-2, steps=9)
    run(model, optimizer, kept)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    middle = copies(model)
    run(model, optimizer, 9 - kept, first=kept)
    expected, trained = copies(model), lt.trainable(model)
    for p in tensors(model).values():
        p.requires_grad_(True)
    with torch.no_grad():
        for key, t in tensors(model).items():
            t.copy_(middle[key])
    again = optimiser(model, update, lr=1e-2, steps=9, resumes=True)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))
    run(model, again, 9 - kept, first=kept)
    assert same(copies(model), expected) and not same(expected, start)
    assert set(lt.trainable(model)) == set(trained) and 0 < len(trained) < len(start)


def test_nothing_goes_backward_below_the_deepest_that_trains():
    model = full(3, "params(*)")
    update = GreenTrainer(rho=0.5)
    optimizer = optimiser(model, update, lr=1e-2, steps=9)
    run(model, optimizer, 3)
    plan = training_plan(model, 9)
    levels = {group.level for group in plan.groups if group.params["theta"].requires_grad}
    seen: list[int] = []
    for index, block in enumerate(model.model.layers):
        block.register_full_backward_hook(lambda *_, index=index: seen.append(index + 1))
    model(**batches(1, seed=3)[0]).loss.backward()
    assert levels and min(seen) >= min(levels) and 0 not in levels


def test_bad_settings_are_told_with_the_bound():
    for rho in (0.0, 1.2):
        with pytest.raises(lt.LuthierError, match="above 0 and at most 1"):
            GreenTrainer(rho=rho)
    with pytest.raises(lt.LuthierError, match="at least 3"):
        GreenTrainer(every=2)
    with pytest.raises(lt.LuthierError, match="at least 3"):
        optimiser(full(2), GreenTrainer(), lr=1e-3, steps=2)
    with pytest.raises(lt.LuthierError, match=r"forward pass 0\.3.*give rho at least 0\.3"):
        optimiser(full(2), GreenTrainer(rho=0.2), lr=1e-3, steps=9)


def test_a_run_selects_anew_each_epoch_and_its_new_head_always_trains(tmp_path):
    base = save_model(tmp_path / "llama", "llama")
    rows = [{"text": row["prompt"], "label": "even" if i % 2 else "odd"} for i, row in enumerate(sums(24))]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    settings = Training(epochs=2.0, batch=4, lr=1e-2, eval_fraction=0.0, save_every=100)
    update = GreenTrainer(rho=0.5)
    result = train(
        Run(base, source, lt.Full(), None, str(tmp_path / "run"), training=settings, update=update), progress=False
    )
    assert len(result.losses) == 12
    again = [loss for step, loss in result.losses if step in (1, 2, 7, 8)]  # the probes
    assert all(loss > 0 for loss in again)
    fresh = lt.model(base, task="classification", labels=["even", "odd"]).model
    lt.load(fresh, result.adapter)
    moved = {key for key, p in tensors(fresh).items() if not p.equal(dict(fresh.named_parameters())[base_key(key)])}
    assert any("score" in key for key in moved) and len(moved) < len(tensors(fresh))


def base_key(key: str) -> str:
    return key.partition(".")[2].removesuffix(".theta")

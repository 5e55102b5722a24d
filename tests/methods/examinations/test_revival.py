"""Revival: a shifted label hides an ability and fresh weights have none; gradients, probes and put-back weights."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from luthier.combining.parameter_refs import parameter_refs
from luthier.core.contracts.examination import Change, Pair
from luthier.core.errors import LuthierError
from luthier.core.numerics.delta import Delta
from luthier.core.sites.scope import Scope
from luthier.methods.examinations._probes import crossed, first_states, ridge
from luthier.methods.examinations.revival import Revival, edited, loss_of, mask_gradient, masked, ones, refresh
from support.architectures import ARCHITECTURES

CLASSES = 6


def rows(count: int, shift: int = 0, seed: int = 0) -> list[dict]:
    """The class of three tokens is that of the first one, a table look-up; a shifted label is the next class."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(10, 34, (count, 4), generator=draw)
    ids[:, 3] = 50 + (ids[:, 0] * 7 // 3 + shift) % CLASSES
    labels = torch.full_like(ids, -100)
    labels[:, 3] = ids[:, 3]
    mask = torch.ones_like(ids)
    parts = zip(*(each.split(64) for each in (ids, mask, labels)), strict=True)
    return [{"input_ids": a, "attention_mask": b, "labels": c} for a, b, c in parts]


def fit(model: nn.Module, batches: list[dict], steps: int, lr: float = 3e-3) -> nn.Module:
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0)
    for step in range(steps):
        optimiser.zero_grad()
        loss_of(model, batches[step % len(batches)]).backward()
        optimiser.step()
    optimiser.zero_grad()
    return model.requires_grad_(False)


def pair_of(before: nn.Module, after: nn.Module, data: list[dict]) -> Pair:
    scope, changes = Scope(before), []
    for group in parameter_refs(before):
        path = group[0].place(scope, {}).site.path
        delta = (after.get_parameter(path) - before.get_parameter(path)).detach()
        changes.append(Change(group[0].place(scope, {}), lambda delta=delta: Delta.dense_of(delta)))
    return Pair(lambda: changes, lambda: nullcontext(before), lambda: nullcontext(after), {"old": data})


@pytest.fixture(scope="module")
def old() -> nn.Module:
    return fit(ARCHITECTURES["llama"].build(), rows(1024), 100)


def tuned(old: nn.Module) -> nn.Module:
    model = ARCHITECTURES["llama"].build()
    model.load_state_dict(old.state_dict())
    return model


def test_a_shifted_label_hides_and_fresh_weights_have_lost(old):
    """The row's check: probes stay high, revival is quick; a re-initialised control shows neither."""
    data = rows(192, seed=5)
    hidden = fit(tuned(old), rows(1024, seed=9, shift=1), 20)
    found = Revival(steps=100, lr=1e-3).measure(pair_of(old, hidden, data))
    summary, null = found.summary, found.null_summary
    assert summary["before"] > 0.95 and summary["after"] < 0.2, found.verdict
    assert summary["probe"] > 0.9 > 0.6 > null["probe"], found.verdict
    assert summary["steps"] * 3 <= null["steps"] and summary["steps"] < 40, found.verdict
    assert "is hidden" in found.verdict
    gone = tuned(old)
    refresh(gone, 3)
    control = Revival(steps=12, lr=1e-3).measure(pair_of(old, gone, data))
    assert (
        control.summary["steps"] == 13
        and control.summary["probe"] < 0.6
        and "not shown to be hidden" in control.verdict
    )


def test_pruning_finds_a_planted_wrapper(old):
    """Two channels that drown the answer: removing them brings it back, random ones do not."""
    model = tuned(old)
    with torch.no_grad():
        model.get_parameter("model.layers.2.mlp.down_proj.weight")[[3, 8]] *= 300
    data = rows(192, seed=6)
    found = Revival(steps=1, prune=0.01).measure(pair_of(old, model, data))
    assert found.summary["after"] < 0.6, found.verdict
    assert (
        found.summary["pruned"] > found.summary["after"] + 0.2
        and found.summary["pruned"] > found.null_summary["pruned"]
    )


def test_the_gradient_of_masks_is_the_finite_difference():
    model = ARCHITECTURES["llama"].build(dtype=torch.float64)
    batches, masks = rows(128), ones(model)
    found = mask_gradient(model, masks, batches)

    def loss() -> float:
        with torch.no_grad():
            return sum(float(loss_of(model, batch)) for batch in batches) / len(batches)

    for path in ("model.layers.0.mlp.down_proj", "model.layers.2.self_attn.q_proj"):
        at = int(found[path].abs().argmax())  # llama's norms compute in float32, which small differences drown in
        sides = []
        for step in (1e-3, -1e-3):
            moved = {path: masks[path].clone()}
            moved[path][at] += step
            with masked(model, moved):
                sides.append(loss())
        assert float(found[path][at]) == pytest.approx((sides[0] - sides[1]) / 2e-3, rel=2e-3)


def test_probes_read_the_state_before_the_answer():
    model = ARCHITECTURES["llama"].build(dtype=torch.float64)
    states, classes = first_states(model, rows(60))
    batch = {key: torch.cat([each[key] for each in rows(60)]) for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        wanted = model(**batch, output_hidden_states=True).hidden_states
    assert len(states) == len(wanted) == 4
    assert all(torch.allclose(x, y[:, 2]) for x, y in zip(states, wanted, strict=True))
    assert torch.equal(classes, batch["input_ids"][:, 3])
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(60, 5, generator=draw, dtype=torch.float64)
    labels = (x[:, 2] > 0).long()
    x[:, 2] += labels * 2 - 1
    assert crossed(x, labels, 4, 0) > 0.9 and crossed(x, labels[torch.randperm(60, generator=draw)], 4, 0) < 0.75
    weights = torch.linalg.solve(
        (x - x.mean(0)).mT @ (x - x.mean(0)) + 0.01 * (x - x.mean(0)).square().sum(1).mean() * torch.eye(5).double(),
        (x - x.mean(0)).mT @ (nn.functional.one_hot(labels).double() - nn.functional.one_hot(labels).double().mean(0)),
    )
    direct = ((x - x.mean(0)) @ weights + nn.functional.one_hot(labels).double().mean(0)).argmax(-1)
    assert torch.equal(ridge(x, labels, x), direct)  # the primal form


def test_weights_are_put_back(old):
    pair = pair_of(old, fit(tuned(old), rows(128, shift=1), 3), rows(128))
    before = {key: value.clone() for key, value in old.state_dict().items()}
    with edited(pair) as model:
        assert not torch.equal(
            model.get_parameter("model.layers.0.mlp.up_proj.weight"), before["model.layers.0.mlp.up_proj.weight"]
        )
        refresh(model, 0)
    assert all(torch.equal(value, before[key]) for key, value in old.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in old.parameters())
    with pytest.raises(LuthierError, match="give two"):
        Revival().measure(pair_of(old, old, rows(16)))

"""CoFiTune's soft mask: its importance from two dropout passes, and what it lets move."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch.nn import functional

import luthier as lt
from luthier.core.adapters.optimiser import optimiser
from luthier.core.adapters.training_plan import training_plan
from luthier.methods.updates.soft_mask import SoftMask, importance, measured
from support.calibrated import batches
from support.common import copies, full, run

WHERE = "params(*mlp*) & layers(1, 1)"


def logits(model):
    return lambda number: model(**{k: v for k, v in batches(1, seed=number)[0].items() if k != "labels"}).logits


def test_h_is_the_derivative_of_the_divergence_by_the_mask():
    model = full(2, WHERE)
    plan = training_plan(model, 4)
    layers = {group.site.module: group.module for group in plan.groups}
    plan = type(plan)(plan.groups, plan.depth, plan.steps, logits=logits(model), seed=5)
    found = measured(plan, layers, 2, 0.3)

    def divergence(path: str, row: int, factor: float) -> float:
        handles = [m.register_forward_pre_hook(lambda m, a: (functional.dropout(a[0], 0.3), *a[1:]))
                   for m in layers.values()]  # fmt: skip

        def scaled(module, args, y):
            scale = torch.ones(y.shape[-1], dtype=y.dtype)
            scale[row] = factor
            return y * scale

        handles.append(layers[path].register_forward_hook(scaled))
        torch.manual_seed(5)
        total = 0.0
        with torch.no_grad():
            for number in range(2):
                p, q = (logits(model)(number).flatten(0, -2) for _ in range(2))
                total += float(functional.kl_div(p.log_softmax(-1), q.softmax(-1), reduction="batchmean"))
        for handle in handles:
            handle.remove()
        return total

    for path, h in found.items():
        row = int(h.abs().argmax())
        slope = (divergence(path, row, 1.05) - divergence(path, row, 0.95)) / 0.1
        assert float(h[row]) == pytest.approx(slope, rel=0.03)


def test_importance_is_the_tanh_of_the_z_score():
    h = torch.tensor([1.0, 2.0, 3.0, 10.0])
    expected = torch.tanh((h - 4.0) / (torch.tensor([9.0, 4.0, 1.0, 36.0]).sum() / 3).sqrt()).abs()
    assert torch.allclose(importance(h), expected) and not importance(torch.ones(3)).any()


def test_gradients_are_multiplied_row_by_row_and_nothing_else_is_random():
    model = full(2, WHERE)
    torch.manual_seed(7)
    update = SoftMask(batches=2)
    optimizer = optimiser(model, update, lr=1e-2, steps=4, logits=logits(model))
    after = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(after, torch.rand(1))
    states = optimizer.state_dict()["update"]["states"]
    for group in training_plan(model, 4).groups:
        g, rows = torch.randn_like(group.params["theta"]), states[group.name]["rows"]
        assert rows.shape == (g.shape[0],) and 0 < rows.max() < 1 and rows.min() >= 0
        expected = torch.stack([(1 - rows[i]) * g[i] for i in range(len(g))])
        assert torch.allclose(update.update({"theta": g}, states[group.name], group)["theta"], expected)


@dataclass(frozen=True)
class Fixed(SoftMask):
    """Importance that is given: 1 for the first three rows, 0 for the others."""

    def begin(self, plan):
        return {
            group.name: {"rows": (torch.arange(group.params["theta"].shape[0]) < 3).double()} for group in plan.groups
        }


def test_rows_of_importance_one_never_move_and_those_of_zero_move_as_without():
    model, plain, start = full(2, WHERE), full(2, WHERE), copies(full(2, WHERE))
    run(model, optimiser(model, Fixed(), lr=1e-2, steps=1), 1)
    run(plain, optimiser(plain, lt.AdamW(), lr=1e-2, steps=1), 1)
    for key, t in copies(model).items():
        assert torch.equal(t[:3], start[key][:3]) and torch.equal(t[3:], copies(plain)[key][3:])
        assert not torch.equal(t[3:], start[key][3:])


def test_bad_use_is_told():
    with pytest.raises(lt.LuthierError, match="0 to 1"):
        SoftMask(strength=1.5)
    with pytest.raises(lt.LuthierError, match="use full"):
        optimiser(lt.attach(full(2), lt.LoRA(), name="other"), SoftMask(), lr=1e-3, steps=4, name="other")
    with pytest.raises(lt.LuthierError, match="is of one"):
        optimiser(full(2, "params(*norm.weight)"), SoftMask(), lr=1e-3, steps=4)

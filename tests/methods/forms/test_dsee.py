"""DSEE: its equation, the support that GreBsmo finds, and weights that stay pruned."""

from __future__ import annotations

import pytest
import torch

import luthier as lt
from luthier.core.adapters.control import tensors
from luthier.core.adapters.optimiser import optimiser
from luthier.methods.forms.dsee import DSEE, grebsmo
from luthier.methods.updates.prune import Prune
from support.common import llama, run

WHERE = "q_proj, down_proj"


def test_a_planted_support_is_found_beside_a_low_rank():
    torch.manual_seed(0)
    low = torch.randn(40, 5, dtype=torch.float64) @ torch.randn(5, 60, dtype=torch.float64)
    planted = torch.randperm(2400)[:50].sort().values
    signs = torch.randint(0, 2, (50,)).double() * 2 - 1
    w = low + 0.01 * torch.randn(40, 60, dtype=torch.float64)
    w.view(-1)[planted] += 4 * signs
    found = grebsmo(w, 50, 5)
    assert len(found.unique()) == 50 and torch.isin(found, planted).double().mean() >= 0.96
    largest = w.abs().flatten().topk(50).indices
    assert torch.isin(largest, planted).double().mean() < 0.5, "magnitude alone would not find it"


def test_the_layer_is_its_equation_and_s_keeps_its_budget():
    torch.manual_seed(1)
    layer = torch.nn.Sequential(torch.nn.Linear(9, 7, dtype=torch.float64), torch.nn.Linear(7, 5, dtype=torch.float64))
    w, b = layer[0].weight.detach().clone(), layer[0].bias.detach().clone()
    x = torch.randn(3, 9, dtype=torch.float64)
    before = layer(x)
    lt.attach(layer, DSEE(rank=2, alpha=6.0, entries_each=4, support_rank=2), "0")
    assert torch.equal(layer(x), before)
    held = {key.rpartition(".")[2]: t for key, t in tensors(layer).items()}
    with torch.no_grad():
        held["B"].normal_()
        held["values"].normal_()
    s = torch.zeros(63, dtype=torch.float64).index_put((held["index"].long(),), held["values"].detach()).view(7, 9)
    assert int((s != 0).sum()) == 4 == len(held["index"].unique())
    dense = w + 3.0 * (held["B"] @ held["A"] + s)
    expected = torch.nn.functional.linear(torch.nn.functional.linear(x, dense, b), layer[1].weight, layer[1].bias)
    assert torch.allclose(layer(x), expected, atol=1e-12)


@pytest.mark.parametrize("by", ["change", "weight"])
def test_pruned_weights_stay_zero_in_training_saving_and_merging(by, tmp_path):
    torch.manual_seed(2)
    model = lt.attach(llama(2), DSEE(rank=2, entries_each=20, support_rank=2, prunable=True), WHERE)
    optimizer = optimiser(model, Prune(ratio=0.3, by=by, start=0.5), lr=1e-2, steps=8)
    run(model, optimizer, 4)
    masks = {key: t.bool() for key, t in tensors(model).items() if key.endswith("keep")}
    for key, mask in masks.items():
        held = {name: tensors(model)[key.replace("keep", name)].detach() for name in ("A", "B", "index", "values")}
        path = key.split(".", 1)[1].removesuffix(".keep")
        w = model.get_submodule(path)._parameters["weight"]
        delta = held["B"] @ held["A"]
        delta.view(-1)[held["index"].long()] += held["values"]
        size = (delta if by == "change" else w).abs()
        assert int((~mask).sum()) == int(0.3 * mask.numel()) and size[~mask].max() <= size[mask].min()
    run(model, optimizer, 4, first=4)
    assert all(tensors(model)[key].bool().equal(mask) for key, mask in masks.items())
    ids = torch.tensor([[5, 6, 7, 8]])
    expected = model(ids).logits
    lt.save(model, tmp_path / "adapter", base="tiny")
    fresh = lt.load(llama(2), tmp_path / "adapter")
    assert torch.equal(fresh(ids).logits, expected)
    lt.merge(fresh)
    for key, mask in masks.items():
        merged = fresh.get_submodule(key.split(".", 1)[1].removesuffix(".keep"))._parameters["weight"]
        assert (merged[~mask] == 0).all() and (merged[mask] != 0).all()
    assert torch.allclose(fresh(ids).logits, expected, atol=1e-12)


def test_bad_settings_are_told():
    with pytest.raises(lt.LuthierError, match="at most as many"):
        lt.attach(llama(2), DSEE(entries_each=10**6), WHERE)
    with pytest.raises(lt.LuthierError, match="below 1"):
        Prune(ratio=1.0)
    with pytest.raises(lt.LuthierError, match="use both"):
        optimiser(lt.attach(llama(2), DSEE(rank=2), WHERE), Prune(), lr=1e-3, steps=4)

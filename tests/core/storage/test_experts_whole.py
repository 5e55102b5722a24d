"""Parameters of more than two axes: few entries and whole copies meet the tensor, factors each expert's map."""

from __future__ import annotations

import pytest
import torch

import luthier as lt
from luthier.core.adapters.attach import state_of
from luthier.training.sparse import sparsify
from support.architectures import ARCHITECTURES

MIXTRAL = ARCHITECTURES["mixtral"]
DOWN = "params(*.experts.down_proj)"


def output(model) -> torch.Tensor:
    with torch.no_grad():
        return model(**MIXTRAL.inputs())[0]


@pytest.mark.parametrize("where", ["params(*)", "experts"])
def test_entries_of_the_last_expert_are_saved_and_load(where, tmp_path):
    model = lt.attach(MIXTRAL.build(), lt.Full(), where)
    for key, parameter in lt.trainable(model).items():
        if key.endswith("down_proj.theta"):
            parameter.data[-1, :2, -3:] += 0.5
    moved = output(model)
    sparsify(model, "default")
    assert {part.form.name() for part in state_of(model).components} == {"sparse"}
    lt.save(model, tmp_path / "adapter")
    loaded = lt.load(MIXTRAL.build(), tmp_path / "adapter")
    assert torch.equal(output(loaded), moved)
    lt.merge(loaded)
    assert torch.equal(output(loaded), moved)


@pytest.mark.parametrize("where", [DOWN, "experts"])
def test_entries_are_drawn_from_all_experts(where):
    model = lt.attach(MIXTRAL.build(), lt.Sparse(density=0.5), where)
    (tuner, *_) = state_of(model).components[0].tuners.values()
    experts, d_out, d_in = tuner.site.experts, tuner.site.d_out, tuner.site.d_in
    index = tuner.own()["index"]
    assert experts == 4 and len(index) == experts * d_out * d_in // 2
    assert set((index // (d_out * d_in)).tolist()) == set(range(experts))


@pytest.mark.parametrize("form", [lt.LoRA(rank=2), lt.DoRA(rank=2), lt.WeGeFT(rank=2)], ids=lambda form: form.name())
@pytest.mark.parametrize("square", [True, False])
def test_factors_meet_each_expert_however_it_is_named(form, square):
    settings = MIXTRAL.settings | ({"intermediate_size": MIXTRAL.settings["hidden_size"]} if square else {})
    known = type(MIXTRAL)(MIXTRAL.config, MIXTRAL.model, settings, tags=MIXTRAL.tags)
    named, whole = lt.attach(known.build(), form, DOWN), lt.attach(known.build(), form, "experts")
    shapes = {key: p.shape for key, p in lt.trainable(whole).items() if "down_proj" in key}
    assert {key: p.shape for key, p in lt.trainable(named).items()} == shapes
    assert all(shape[0] == 4 for shape in shapes.values())


def test_matrices_are_told_from_kernels_of_convolutions():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3))
    with pytest.raises(lt.LuthierError, match="more than three axes"):
        lt.attach(net, lt.LoRA(rank=1), "params(0.weight)", check=False)
    lt.attach(net, lt.Sparse(density=1.0), "params(0.weight)", check=False)
    assert lt.trainable(net, count=True) == 81


def test_the_number_of_entries_is_at_least_one_and_at_most_all():
    for wrong in (0, -5):
        with pytest.raises(lt.LuthierError, match=rf"sparse.k is {wrong}; expected a whole number of at least 1"):
            lt.Sparse(k=wrong)
        with pytest.raises(lt.LuthierError, match=rf"s2ft.units is {wrong}; expected a whole number of at least 1"):
            lt.S2FT(units=wrong)
    with pytest.raises(lt.LuthierError, match=r"sparse.k is 9,999, and .* 1,024 entries; expected at most"):
        lt.attach(ARCHITECTURES["llama"].build(), lt.Sparse(k=9999), "q_proj")
    model = lt.attach(ARCHITECTURES["llama"].build(), lt.Sparse(k=1024), "q_proj & layers(0)")
    assert lt.trainable(model, count=True) == 1024

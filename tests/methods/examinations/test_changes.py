"""What changed, read off an adapted model and off its adapter on disk: the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import luthier as lt
from luthier.core.contracts.combination import examined
from luthier.core.contracts.examination import Change
from luthier.examining.pair import changes_in, changes_of
from support.architectures import ARCHITECTURES

FORMS = [lt.LoRA(rank=2), lt.DoRA(rank=2), lt.WeGeFT(rank=2), lt.Full()]


def in_blocks(changes: list[Change]) -> dict[str, tuple[Tensor, Tensor]]:
    """`{path: (W0, δ)}`, [d_out, d_in]."""
    with torch.no_grad():
        return {c.place.site.path: (c.place.base(), c.delta().dense()) for c in changes if examined(c.place)}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name())
@pytest.mark.parametrize("which", ["llama", "gpt2"])  # gpt2 stores [d_in, d_out]
def test_a_live_model_and_its_file_tell_the_same(which, form, tmp_path):
    model = ARCHITECTURES[which].build(dtype=torch.float64)
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    lt.attach(model, form)
    with torch.no_grad():
        for parameter in lt.trainable(model).values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    live = in_blocks(changes_in(model))
    bare = ARCHITECTURES[which].build(dtype=torch.float64)
    stored = in_blocks(changes_of(bare, lt.save(model, tmp_path / "a")))
    lt.merge(model)
    assert len(live) > 3 and live.keys() <= stored.keys()
    flip = which == "gpt2"
    for path, (base, delta) in live.items():
        merged = model.get_parameter(path).detach() - before[path]
        assert torch.allclose(delta, merged.mT if flip else merged, atol=1e-10) and bool(delta.any())
        assert torch.allclose(stored[path][1], delta, atol=1e-10) and torch.equal(stored[path][0], base)


def test_forms_on_activations_and_silent_adapters_change_nothing():
    model = ARCHITECTURES["llama"].build()
    lt.attach(model, lt.LoReFT(rank=2))
    assert not changes_in(model)
    lt.attach(model, lt.LoRA(rank=2), name="second")
    assert len(changes_in(model)) == 21
    lt.disable(model, "second")
    assert not changes_in(model)


def test_what_looks_at_weights_alone_needs_no_processor(tmp_path):
    model = ARCHITECTURES["llama"].build()
    folder = lt.save(lt.attach(model, lt.LoRA(rank=2)), tmp_path / "a")
    assert lt.examine(folder, "intruders", base=lt.detach(model)).report.effect == 0

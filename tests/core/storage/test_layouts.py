"""Adapters of ours meet a base under other names: they load to the same outputs, or the first name is told."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import luthier as lt
from support.architectures import ARCHITECTURES

FORMS = {
    "lora": (lt.LoRA(rank=2), "all-linear"),
    "ranked": (lt.LoRA(rank=2), "q_proj"),
    "shared": (lt.WeGeFT(rank=2, share="type"), "q_proj, v_proj"),
    "stream": (lt.LoReFT(rank=2), "stream"),
    "by paths": (lt.LoRA(rank=2), "model.layers.1.self_attn.q_proj, model.layers.2.mlp.up_proj"),
    "full": (lt.Full(), "params(model.layers.1.*)"),
}


class Wrapper(nn.Module):
    """Stands between a model and its inside, as torch.compile's module does."""

    def __init__(self, inside: nn.Module, name: str) -> None:
        super().__init__()
        self.add_module(name, inside)
        self.name = name

    def forward(self, *args, **kwargs):
        return self._modules[self.name](*args, **kwargs)


def build(wrapped: str | None = None):
    model = ARCHITECTURES["llama"].build()
    if wrapped == "blocks":
        for index, block in enumerate(model.model.layers):
            model.model.layers[index] = Wrapper(block, "_orig_mod")
    elif wrapped:
        model.model = Wrapper(model.model, wrapped)
    return model


def output(model) -> torch.Tensor:
    with torch.no_grad():
        return model(**ARCHITECTURES["llama"].inputs()).logits


def attached(form: str, wrapped: str | None = None):
    equation, where = FORMS[form]
    paths = [f"model.layers.{i}.self_attn.q_proj" for i in range(3)]
    ranks = dict(zip(paths, (1, 0, 3), strict=True)) if form == "ranked" else None
    model = lt.attach(build(wrapped), equation, where, ranks=ranks)
    for parameter in lt.trainable(model).values():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("wrapped", ["_orig_mod", "module", "language_model", "blocks"])
@pytest.mark.parametrize("form", FORMS)
def test_a_base_in_a_wrapper_is_the_same_base(form, wrapped, tmp_path):
    """And what is saved from there loads onto the plain one."""
    model = attached(form)
    folder = lt.save(model, tmp_path / "plain")
    there = lt.load(build(wrapped), folder)
    assert torch.equal(output(there), output(model))
    back = lt.load(build(), lt.save(there, tmp_path / "wrapped"))
    assert torch.equal(output(back), output(model))


def test_another_base_in_a_wrapper_is_another(tmp_path):
    folder = lt.save(attached("lora"), tmp_path / "plain")
    other = build("_orig_mod")
    other.model._orig_mod.layers[1].mlp.up_proj.weight.data[3, 4] += 0.1
    with pytest.raises(lt.LuthierError, match=r"weights differ \(first in model\._orig_mod\.layers\.1\.mlp\.up_proj"):
        lt.load(other, folder)


def test_the_first_name_that_does_not_fit_is_told_beside_the_nearest(tmp_path):
    folder = lt.save(attached("lora"), tmp_path / "plain")
    other = build("attention")
    with pytest.raises(lt.LuthierError, match=r"its model\.embed_tokens\.weight is not here; did you mean 'model\.att"):
        lt.load(other, folder)

"""Convolutions as places: the forms act on the unfolded input, merge exactly, and are saved and loaded."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from transformers import ResNetConfig, ResNetForImageClassification

import luthier as lt
from luthier.core.adapters.control import tensors

FORMS = {
    "lora": lt.LoRA(rank=2),
    "wegeft": lt.WeGeFT(rank=2),
    "dora": lt.DoRA(rank=2),
    "full": lt.Full(),
    "sparse": lt.Sparse(density=0.1),
}


def build():
    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=6, hidden_sizes=[6, 8], depths=[1, 1], layer_type="basic", num_labels=3, num_channels=2
    )
    return ResNetForImageClassification(config).double().eval()


def perturbed(model):
    torch.manual_seed(1)
    with torch.no_grad():
        for t in lt.trainable(model).values():
            t.add_(0.3 * torch.randn_like(t))
    return model


@pytest.mark.parametrize("name", list(FORMS))
def test_a_form_acts_on_the_unfolded_input_and_merges_and_is_saved(name, tmp_path):
    model, x = build(), torch.randn(2, 2, 16, 16, dtype=torch.float64)
    before = model(x).logits
    lt.attach(model, FORMS[name], "conv")
    assert torch.allclose(model(x).logits, before, atol=1e-12)
    perturbed(model)
    after = model(x).logits
    assert not torch.allclose(after, before, atol=1e-3)
    seen: dict = {}
    path, layer = next(
        (p, m) for p, m in model.named_modules() if isinstance(m, torch.nn.Conv2d) and m.stride == (2, 2)
    )
    handle = layer.register_forward_hook(lambda module, args, y: seen.update(x=args[0], y=y))
    model(x)
    handle.remove()
    held = {key.rpartition(".")[2]: t.detach() for key, t in tensors(model).items() if f".{path}.weight." in key}
    w = build().get_submodule(path).weight.detach().flatten(1)  # the base's, [out, in · kernel]
    if name == "lora":
        w = w + FORMS[name].scale * held["B"] @ held["A"]
    elif name == "full":
        w = held["theta"]
    elif name == "sparse":
        w = w.flatten().index_add(0, held["index"].long(), held["values"]).view_as(w)
    else:
        w = FORMS[name].weight(held, w) if name == "dora" else None
    if w is not None:
        columns = functional.unfold(seen["x"], layer.kernel_size, padding=layer.padding, stride=layer.stride)
        assert torch.allclose((w @ columns).view_as(seen["y"]), seen["y"], atol=1e-10)
    lt.save(model, tmp_path / "adapter", base="tiny")
    fresh = lt.load(build(), tmp_path / "adapter")
    assert torch.equal(fresh(x).logits, after)
    lt.merge(fresh)
    assert torch.allclose(fresh(x).logits, after, atol=1e-10)
    lt.unmerge(fresh)
    lt.detach(fresh)
    assert torch.equal(fresh(x).logits, before)


def test_every_parameter_gets_a_gradient_and_groups_are_counted():
    net = torch.nn.Sequential(
        torch.nn.Conv2d(4, 8, 3, groups=2, padding=1), torch.nn.Conv1d(8, 8, 1), torch.nn.ConvTranspose2d(8, 4, 2)
    )
    sites = lt.select(net, "conv")
    assert [(s.path, s.d_in, s.d_out) for s in sites] == [("0.weight", 18, 8), ("1.weight", 8, 8)]
    model = perturbed(lt.attach(build(), lt.LoRA(rank=2), "conv"))
    model(torch.randn(2, 2, 16, 16, dtype=torch.float64)).logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in lt.trainable(model).values())


def test_words_select_convolutions_and_nothing_is_told():
    model = build()
    every = {f"{path}.weight" for path, m in model.named_modules() if isinstance(m, torch.nn.Conv2d)}
    assert {site.path for site in lt.select(model, "conv")} == every
    some = {site.path for site in lt.select(model, "conv(*.stages.1.*)")}
    assert some and some == {path for path in every if ".stages.1." in path}
    assert {site.kind for site in lt.select(model, "conv | classifier.1")} == {"param", "affine"}
    with pytest.raises(lt.LuthierError, match="'conv' matches nothing"):
        lt.select(torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 2)), "conv")

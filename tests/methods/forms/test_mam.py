"""The unified view: methods as compositions along its axes; MAM is prefixes and a scaled adapter beside the MLP."""

from __future__ import annotations

import pytest
import torch

import luthier as lt
from luthier.methods.recipe import read_recipe
from luthier.methods.targeted_form import TargetedForm
from support.architectures import ARCHITECTURES

AXES = {"insertion": "parallel", "scale": 4.0, "activation": "relu"}


def build():
    torch.manual_seed(1)
    return ARCHITECTURES["llama"].build(dtype=torch.float64)


def perturb(model):
    generator = torch.Generator().manual_seed(2)
    for p in lt.trainable(model).values():
        p.data += 0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return model


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 15)[None]).logits


def mam():
    model = lt.attach(build(), lt.Prefix(length=3))
    lt.attach(model, lt.Bottleneck(dim=5, **AXES), "output(mlp)")  # type: ignore[arg-type]
    return perturb(model)


def test_the_recipe_is_the_papers_composition():
    recipe = read_recipe("mam")
    (piece,) = map(TargetedForm.from_dict, recipe.also)
    assert (recipe.method, recipe.where, recipe.form) == ("prefix", "attention", {"length": 30})
    assert (piece.form, piece.where) == (lt.Bottleneck(dim=512, **AXES), "output(mlp)")  # type: ignore[arg-type]


def test_it_is_the_prefixed_model_whose_mlps_have_a_scaled_relu_beside_them():
    model = mam()
    expected = build()
    held = {key.removeprefix("default."): t.detach() for key, t in lt.trainable(model).items()}
    lt.attach(expected, lt.Prefix(length=3), name="prefix")
    for key, tensor in lt.trainable(expected).items():
        tensor.data = held[key.removeprefix("prefix.")]
    for index, block in enumerate(expected.model.layers):
        p = {k: model.model.layers[index].mlp.adapters.tuners()[0]._parameters[k] for k in ("down", "up")}
        b = {k: model.model.layers[index].mlp.adapters.tuners()[0]._parameters[f"{k}_bias"] for k in ("down", "up")}

        def beside(module, args, out, p=p, b=b):
            return out + 4.0 * ((args[0] @ p["down"].T + b["down"]).relu() @ p["up"].T + b["up"])

        block.mlp.register_forward_hook(beside)
    assert torch.allclose(logits(model), logits(expected), atol=1e-10)
    with lt.disabled(model):
        assert torch.equal(logits(model), logits(build()))


def test_lora_is_the_adapter_without_its_nonlinearity():
    """Axes: the same insertion, site and composition; identity for the function."""
    where, form = "down_proj", lt.LoRA(rank=4, alpha=16.0)
    lora = perturb(lt.attach(build(), form, where))
    parallel = build()
    lt.attach(parallel, lt.Bottleneck(dim=4, insertion="parallel", scale=form.scale), where)
    for site in lt.select(build(), where):
        a, b = (m.get_submodule(site.path).adapters.tuners()[0] for m in (lora, parallel))
        # far to the right of its kink the rectifier is the identity; the constant is taken off behind it
        b.down.data, b.down_bias.data = a.A.data, torch.full((4,), 1e3, dtype=torch.float64)
        b.up.data, b.up_bias.data = a.B.data, -a.B.data.sum(1) * 1e3
    assert torch.allclose(logits(lora), logits(parallel), atol=1e-8)


def test_one_name_is_saved_loaded_disabled_and_detached_as_one(tmp_path):
    model = mam()
    lt.save(model, tmp_path / "mam")
    loaded = lt.load(build(), tmp_path / "mam", name="again")
    assert torch.equal(logits(loaded), logits(model))
    assert torch.equal(logits(lt.detach(loaded, "again")), logits(build()))


def test_both_are_trained():
    model = lt.attach(lt.attach(build(), lt.Prefix(length=3)), lt.Bottleneck(dim=5), "output(mlp)")
    ids = torch.arange(3, 15)[None]
    optimizer = torch.optim.Adam(lt.trainable(model).values(), lr=1e-2)
    before = {key: t.detach().clone() for key, t in lt.trainable(model).items()}
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert all(not torch.equal(t, before[key]) for key, t in lt.trainable(model).items())


def test_two_forms_at_one_place_are_refused():
    model = lt.attach(build(), lt.Bottleneck(dim=5), "output(mlp)")
    with pytest.raises(lt.LuthierError, match="already acts on"):
        lt.attach(model, lt.LoReFT(rank=2), "output(mlp)")


def test_attentions_of_an_encoder_decoder_are_found_without_weights():
    """A model on the meta device has no numbers that a mask could go by."""
    from transformers import BartConfig

    from luthier.core.sites.attention import attention_shapes
    from luthier.models import meta_model

    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "vocab_size": 97}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    model = meta_model(BartConfig(architectures=["BartForConditionalGeneration"], **sizes, **heads))
    before = model.config._attn_implementation
    assert len(attention_shapes(model)) == 6 and set(attention_shapes(model).values()) == {(4, 8)}
    assert model.config._attn_implementation == before

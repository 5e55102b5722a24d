"""Every form on every architecture: found by structure, attached, moved, saved, loaded, detached."""

from __future__ import annotations

import pytest
import torch

import luthier as lt
from luthier.core.contracts.component import find, names
from luthier.core.contracts.form import Form
from luthier.core.sites.structure import block_lists
from support.architectures import ARCHITECTURES
from support.thinned import thinned

NO_BIAS = {"llama", "qwen3", "gemma3", "mistral", "mixtral", "qwen3_moe", "phi3", "t5"}
OWN_ATTENTION = {"bloom", "falcon", "deberta_v2"}
"""Architectures whose attention does not go through transformers' attention interface."""

FEED_FORWARD = {"llama", "qwen2", "qwen3", "gemma3", "mistral", "phi3", "gpt2", "gpt_neox", "falcon"}
FEED_FORWARD |= {"vit", "clip", "ast"}
"""Architectures whose feed-forward part is a module called mlp that is given one tensor."""


NO_PROMPT = {"deberta_v2", "t5", "bart", "vit", "clip", "whisper", "ast", "wav2vec2"}
"""Architectures whose layers do not all see the tokens of a prompt, row by row."""


def output(model, inputs) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs)[0]


@pytest.mark.parametrize(("architecture", "form"), thinned(list(ARCHITECTURES), names("forms"), share=3))
def test_form_on_architecture(architecture, form, tmp_path):
    known = ARCHITECTURES[architecture]
    model, inputs = known.build(), known.inputs()
    kinds = {path: type(module) for path, module in model.named_modules()}
    base = output(model, inputs)
    made = find("forms", form)()
    assert isinstance(made, Form)
    if (made.where == "params(*.bias)" and architecture in NO_BIAS) or (
        made.where == "attention" and architecture in OWN_ATTENTION
    ):
        with pytest.raises(lt.LuthierError):
            lt.attach(model, made)
        assert {path: type(module) for path, module in model.named_modules()} == kinds
        return
    if made.edit_kind == "inside" and architecture not in FEED_FORWARD:
        with pytest.raises(lt.LuthierError):
            lt.attach(model, made)
        assert {path: type(module) for path, module in model.named_modules()} == kinds
        return
    stacks = len(block_lists(model))
    if made.sees and (model.can_generate() or ("states" in made.sees and stacks != 1)):
        with pytest.raises(lt.LuthierError, match=r"reads whole rows|one stack"):
            lt.attach(model, made)
        assert {path: type(module) for path, module in model.named_modules()} == kinds
        return
    if isinstance(made, lt.Routed) and made.by_prompt and architecture in NO_PROMPT:
        with pytest.raises(lt.LuthierError):
            output(lt.attach(model, made), inputs)
        return
    lt.attach(model, made)
    if made.identity:
        assert torch.allclose(output(model, inputs), base, atol=1e-5)
    for parameter in lt.trainable(model).values():
        parameter.data += 0.1 * torch.randn_like(parameter)
    moved = output(model, inputs)
    assert (moved - base).abs().max() > 1e-4
    model(**inputs)[0].pow(2).sum().backward()
    gradients = [p.grad is not None and bool(p.grad.any()) for p in lt.trainable(model).values()]
    assert sum(gradients) >= 0.9 * len(gradients)  # a router may leave experts, a mask a token, without work
    lt.save(model, tmp_path / "adapter")
    assert torch.equal(output(lt.load(known.build(), tmp_path / "adapter"), inputs), moved)
    lt.detach(model)
    assert {path: type(module) for path, module in model.named_modules()} == kinds
    assert torch.equal(output(model, inputs), base)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_linear_never_holds_the_head(architecture):
    model = ARCHITECTURES[architecture].build()
    linear, head = lt.select(model, "all-linear"), lt.select(model, "head")
    assert len(linear) and len(head) and not len(linear & head)
    if (out := model.get_output_embeddings()) is not None:
        path = next(path for path, module in model.named_modules() if module is out)
        assert path in {site.path for site in head} and path not in {site.path for site in linear}


@pytest.mark.parametrize("architecture", [n for n, a in ARCHITECTURES.items() if "experts" in a.tags])
def test_experts_take_a_map_each_and_merge(architecture):
    model, inputs = ARCHITECTURES[architecture].build(), ARCHITECTURES[architecture].inputs()
    lt.attach(model, lt.LoRA(rank=2), where="experts")
    lt.attach(model, lt.WeGeFT(rank=2), where="experts", name="second")
    for parameter in lt.trainable(model).values():
        parameter.data += 0.1 * torch.randn_like(parameter)
    shapes = {p.shape[0] for p in lt.trainable(model).values()}
    assert shapes == {4}
    adapted = output(model, inputs)
    lt.merge(model)
    assert torch.allclose(output(model, inputs), adapted, atol=1e-4)

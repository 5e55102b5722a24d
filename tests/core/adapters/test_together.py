"""Forms that meet on one tensor: the model computes both, merging folds both, and nothing is folded beneath another."""

from __future__ import annotations

import pytest
import torch

import luthier as lt
from support.architectures import ARCHITECTURES


def together(name: str, *pieces, dtype=torch.float64):
    """A model with each (form, where) attached under the names a, b, ... and moved from its start."""
    model = ARCHITECTURES[name].build(dtype=dtype)
    for key, parameter in model.named_parameters():  # biases that start at 0 would hide what acts on them
        if key.endswith("bias"):
            parameter.data.normal_(0, 0.3)
    for letter, (form, where) in zip("abc", pieces, strict=False):
        lt.attach(model, form, where, name=letter)
    for parameter in lt.trainable(model).values():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def output(name: str, model) -> torch.Tensor:
    with torch.no_grad():
        return model(**ARCHITECTURES[name].inputs())[0]


PAIRS = {
    "lora on what sparse makes": ("llama", (lt.LoRA(rank=2), "q_proj"), (lt.Sparse(k=40), "params(*.q_proj.weight)")),
    "lora on what full makes": ("llama", (lt.Full(), "params(*.q_proj.weight)"), (lt.LoRA(rank=2), "q_proj")),
    "dora on what full makes": ("llama", (lt.Full(), "params(*.q_proj.weight)"), (lt.DoRA(rank=2), "q_proj")),
    "dora on what sparse makes": ("llama", (lt.DoRA(rank=2), "q_proj"), (lt.Sparse(k=40), "params(*.q_proj.weight)")),
    "ia3 on what bitfit makes": ("qwen2", (lt.IA3(), "k_proj, v_proj"), (lt.BitFit(), "params(*.bias)")),
    "gpt2's transposed layers": ("gpt2", (lt.LoRA(rank=2), "c_attn"), (lt.Full(), "params(*.c_attn.*)")),
    "a table": ("llama", (lt.Full(), "params(model.embed_tokens.weight)"), (lt.LoRA(rank=2), "embeddings")),
    "a scaled table": ("gemma3", (lt.Full(), "params(model.embed_tokens.weight)"), (lt.LoRA(rank=2), "embeddings")),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*was tied to.*")
@pytest.mark.parametrize("case", PAIRS)
def test_both_act_and_both_are_merged(case):
    name, *pieces = PAIRS[case]
    model = together(name, *pieces)
    both = output(name, model)
    for letter in "ab":  # each has an effect beside the other
        lt.disable(model, letter)
        assert (output(name, model) - both).abs().max() > 1e-3
        lt.enable(model, letter)
    lt.merge(model)
    assert torch.allclose(output(name, model), both, atol=1e-9)
    lt.unmerge(model)
    assert torch.equal(output(name, model), both)


BENEATH = {
    "a scale before a sum": ("llama", (lt.IA3(), "q_proj"), (lt.LoRA(rank=2), "q_proj")),
    "a norm before a sum": ("llama", (lt.DoRA(rank=2), "q_proj"), (lt.Sparse(k=40), "q_proj")),
    "an input's edit behind another": ("llama", (lt.WeGeFT(rank=2), "q_proj"), (lt.WeGeFT(rank=2), "q_proj")),
    "a whole weight below": ("llama", (lt.Full(), "params(*.q_proj.weight)"), (lt.LoRA(rank=2), "q_proj")),
    "a bias below a scale": ("qwen2", (lt.BitFit(), "params(*.k_proj.bias)"), (lt.IA3(), "k_proj")),
    "the whole weight again": ("llama", (lt.Full(), "params(*.q_proj.weight)"),
                               (lt.Sparse(k=40), "params(*.q_proj.weight)")),
}  # fmt: skip


@pytest.mark.parametrize("case", BENEATH)
def test_what_acts_on_another_is_not_merged_beneath_it(case):
    name, *pieces = BENEATH[case]
    model = together(name, *pieces)
    inner, outer = ("b", "a") if case.startswith("an input") else ("a", "b")
    before = output(name, model)
    with pytest.raises(lt.LuthierError, match=rf"'{outer}' .* what '{inner}' .*Merge both"):
        lt.merge(model, outer)
    assert torch.equal(output(name, model), before)
    lt.merge(model, inner)
    assert torch.allclose(output(name, model), before, atol=1e-9)
    lt.unmerge(model)
    lt.disable(model, inner)
    lt.merge(model, outer)


APART = {
    "two sums": ("llama", (lt.LoRA(rank=2), "q_proj"), (lt.LoRA(rank=3), "q_proj")),
    "entries and a sum": ("llama", (lt.Sparse(k=40), "q_proj"), (lt.LoRA(rank=3), "q_proj")),
    "entries of the parameter": ("llama", (lt.Sparse(k=40), "params(*.q_proj.weight)"), (lt.LoRA(rank=3), "q_proj")),
    "a bias and a sum": ("qwen2", (lt.BitFit(), "params(*.q_proj.bias)"), (lt.LoRA(rank=3), "q_proj")),
    "a slice and a sum": ("llama", (lt.S2FT(ratio=0.2), "q_proj"), (lt.LoRA(rank=3), "q_proj")),
    "two layers": ("llama", (lt.IA3(), "k_proj"), (lt.LoRA(rank=3), "q_proj")),
    "two parameters": ("qwen2", (lt.Full(), "params(*.k_proj.bias)"), (lt.Full(), "params(*.k_proj.weight)")),
    "an input before it": ("llama", (lt.IA3(), "input(down_proj)"), (lt.LoRA(rank=3), "down_proj")),
}


@pytest.mark.parametrize("case", APART)
def test_what_may_change_places_is_merged_alone(case):
    name, *pieces = APART[case]
    model = together(name, *pieces)
    before = output(name, model)
    lt.merge(model, "b")
    assert torch.allclose(output(name, model), before, atol=1e-9)

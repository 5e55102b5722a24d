"""Work and memory that a step is not to spend: below the lowest adapter, on inputs nobody needs, on casts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import luthier as lt
from support.architectures import ARCHITECTURES

LLAMA = ARCHITECTURES["llama"]


def model_of(form, where: str | None = None, dtype: torch.dtype = torch.float32) -> nn.Module:
    return lt.attach(LLAMA.build().to(dtype).train(), form, where)


def kept(model: nn.Module) -> list[torch.Tensor]:
    """What a forward pass keeps for the backward pass, a tensor for each storage; the model's own left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    found: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            found.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    inputs = LLAMA.inputs(batch=4)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(**inputs, labels=inputs["input_ids"])
    return list(found.values())


def size(tensors: list[torch.Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


@pytest.mark.parametrize("form", [lt.LoRA(), lt.WeGeFT(), lt.DoRA(), lt.LoRA(dropout=0.1)])
def test_nothing_is_done_below_the_lowest_adapter(form):
    model = model_of(form, "all-linear & layers(1, 2)")
    seen: dict[int, bool] = {}
    for index, block in enumerate(model.model.layers):
        block.register_forward_hook(lambda m, a, y, i=index: seen.update({i: y.requires_grad}))
    kept_above = size(kept(model))
    assert seen[0] is False and seen[1] is True
    assert kept_above < 0.8 * size(kept(model_of(form, "all-linear")))


@pytest.mark.parametrize(("name", "form"), [("qwen2", lt.BitFit()), ("llama", lt.LoReFT(positions="f1"))])
def test_an_input_that_no_form_needs_is_not_kept(name, form):
    """Biases and a few edited positions keep next to nothing beyond the floor, which carries gradients all the way."""
    build = ARCHITECTURES[name].build
    base = size(kept(floor(build().train())))
    lora = size(kept(lt.attach(build().train(), lt.LoRA())))
    assert size(kept(lt.attach(build().train(), form))) <= 1.1 * base < lora


def floor(model: nn.Module) -> nn.Module:
    """A frozen model with gradients through all its activations and into nothing."""
    model.requires_grad_(False)
    model.model.embed_tokens.register_forward_hook(lambda module, args, y: y.requires_grad_())
    return model


@pytest.mark.parametrize("form", [lt.LoRA(), lt.WeGeFT(), lt.DoRA()])
def test_activations_are_not_cast_for_float32_factors(form):
    """On a bfloat16 base no more float32 is kept than the base itself keeps (norms and rotary tables)."""
    bare = floor(LLAMA.build().to(torch.bfloat16).train())
    wide = lambda model: size([t for t in kept(model) if t.dtype == torch.float32])  # noqa: E731
    trained = model_of(form, dtype=torch.bfloat16)
    factors = 4 * sum(p.numel() for p in lt.trainable(trained).values())
    assert wide(trained) <= wide(bare) + factors

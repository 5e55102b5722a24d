"""Pieces of the base that keep less for the backward pass: the same numbers, and less memory."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

import luthier as lt
from luthier.core.adapters.memory_saving import patched_class
from luthier.core.contracts.kernel import reference_implementation
from luthier.kernels._recompute import mark_recomputable, saved_for_backward
from luthier.kernels.memory_saving import glu as _glu
from luthier.kernels.memory_saving import norm as _norm
from support.architectures import ARCHITECTURES

FORMS = [lt.LoRA(), lt.LoRA(dropout=0.3), lt.WeGeFT(rank=4), lt.DoRA(), lt.LoReFT(rank=2), lt.BitFit()]
IDS = torch.randint(0, 100, (2, 9), generator=torch.Generator().manual_seed(3))


def build(dtype: torch.dtype = torch.float32, **settings) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=100, **settings))
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.to(dtype)


def adapted(form, dtype: torch.dtype = torch.float32, where: str | None = None) -> nn.Module:
    model = lt.attach(build(dtype), form, where=where)
    for parameter in lt.trainable(model).values():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def step(model) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """(logits, the gradient of every trained tensor), with the same dropout each time."""
    torch.manual_seed(1)
    model.train().zero_grad()
    out = model(input_ids=IDS, labels=IDS)
    out.loss.backward()
    return out.logits.detach(), [p.grad.clone() for p in lt.trainable(model).values()]


def is_patched(module: nn.Module) -> bool:
    return "_luthier_reference" in vars(type(module))


@pytest.fixture
def without(monkeypatch):
    """Switches the twins off, and only them."""
    return lambda: monkeypatch.setattr("luthier.core.adapters.memory_saving._serves", lambda x: False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.name()}{getattr(form, 'dropout', 0) or ''}")
def test_a_step_gives_the_same_with_and_without(form, dtype, without):
    model = adapted(form, dtype, "params(*norm.weight)" if isinstance(form, lt.BitFit) else None)
    logits, found = step(model)
    without()
    exact, expected = step(model)
    assert torch.equal(logits, exact)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() <= (1e-5 if dtype is torch.float32 else 0.03) * theirs.norm()


@pytest.mark.parametrize("act", ["gelu_pytorch_tanh", "relu", "linear", torch.sin, nn.SiLU(inplace=True), nn.PReLU()])
def test_any_activation_serves(act, without):
    base = build(**({"hidden_act": act} if isinstance(act, str) else {}))
    for block in base.model.layers if callable(act) else ():
        del block.mlp.act_fn
        block.mlp.act_fn = copy.deepcopy(act)
    model = lt.attach(base, lt.LoRA())
    _, found = step(model)
    without()
    for ours, theirs in zip(found, step(model)[1], strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-7)


def test_detaching_gives_the_classes_back():
    model = build()
    kinds, base = [type(module) for module in model.modules()], model(IDS).logits
    lt.attach(model, lt.LoRA())
    assert sum(map(is_patched, model.modules())) == 7  # a feed-forward layer and two norms a block, and the last norm
    assert torch.equal(model(IDS).logits, base) and type(model.model.norm).__name__ == "LlamaRMSNorm"
    lt.detach(model)
    assert [type(module) for module in model.modules()] == kinds


def test_pieces_go_by_what_their_forward_does_and_not_by_name():
    class Mine(nn.Module):
        def forward(self, x):
            """Says something."""
            down_proj = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
            return down_proj

    class Other(nn.Module):
        def forward(self, x):
            down_proj = self.down_proj(self.act_fn(self.gate_proj(x)) + self.up_proj(x))
            return down_proj

    assert patched_class(Mine) is not None and patched_class(Other) is None
    made = patched_class(Mine)
    assert made is not None and made.__name__ == "Mine" and patched_class(made) is None
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    qwen = lt.attach(Qwen2ForCausalLM(Qwen2Config(**sizes, num_key_value_heads=2, vocab_size=50)), lt.LoRA())
    assert sum(map(is_patched, qwen.modules())) == 4
    assert not any(map(is_patched, lt.attach(ARCHITECTURES["gpt2"].build(), lt.LoRA()).modules()))


def test_what_is_kept_is_less(without):
    def bytes_kept(model) -> int:
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        found: dict[int, int] = {}

        def pack(t: torch.Tensor) -> torch.Tensor:
            if t.untyped_storage().data_ptr() not in own:
                found[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss = model(input_ids=IDS, labels=IDS).loss
        return sum(found.values()) + 0 * int(loss > 0)

    models = [adapted(lt.LoRA(), dtype) for dtype in (torch.float32, torch.bfloat16)]
    lean = [bytes_kept(model) for model in models]
    without()
    plain = [bytes_kept(model) for model in models]
    tokens, d, inner = IDS.numel(), 64, 96
    # act(g) and act(g) u of each block; what query, key and value, and what gate and up read
    assert plain[0] - lean[0] >= 4 * tokens * 2 * (2 * inner + 2 * d) * 0.9
    assert plain[1] - lean[1] >= 2 * tokens * 2 * (2 * inner + 2 * d)  # and copies of norms' inputs in float32


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_recomputes_it(reentrant):
    model = adapted(lt.LoRA(dropout=0.2))
    _, plain = step(model)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    for ours, theirs in zip(step(model)[1], plain, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-8)


def test_a_graph_that_is_kept_gives_the_same_twice():
    model = adapted(lt.LoRA())
    loss, tensors = model(input_ids=IDS, labels=IDS).loss, list(lt.trainable(model).values())
    first = torch.autograd.grad(loss, tensors, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(loss, tensors)))


def test_second_derivatives_are_those_of_the_base_itself():
    model = adapted(lt.LoReFT(rank=2))
    model.set_attn_implementation("eager")  # the fused one has no second derivative
    (tensor, *_) = lt.trainable(model).values()

    def second() -> torch.Tensor:
        (slope,) = torch.autograd.grad(model(input_ids=IDS, labels=IDS).loss, tensor, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), tensor)[0]

    with reference_implementation():
        exact = second()
    assert exact.norm() > 0 and torch.allclose(second(), exact, rtol=1e-3, atol=1e-5 * float(exact.abs().max()))


def test_a_tensor_that_was_written_into_is_kept_itself():
    x, left, mask = torch.randn(3, 4), torch.randn(2, 3), torch.rand(3, 4) > 0.5
    made = mark_recomputable(x * 2, torch.mul, x, torch.tensor(2.0))
    times, parts = saved_for_backward(made, None)
    assert len(parts) == 2 and torch.allclose(times(left, None, *parts), left @ made)
    assert torch.allclose(times(left, mask, *parts), left @ (made * mask))
    made.add_(1)
    times, parts = saved_for_backward(made, None)
    assert len(parts) == 1 and parts[0] is made and torch.allclose(times(left, None, *parts), left @ made)


def test_the_plain_twins_are_the_functions_of_transformers():
    model = build()
    norm, layer, x = model.model.norm, model.model.layers[0].mlp, torch.randn(2, 3, 64)
    assert torch.equal(_norm.reference(norm, x), norm(x)) and torch.equal(_glu.reference(layer, x), layer(x))
    assert is_patched(lt.attach(copy.deepcopy(model), lt.LoRA()).model.norm)
